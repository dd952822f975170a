"""The machine that figures come from."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil


def physical_cores() -> int:
    """Physical cores that this process may use: two threads of one core would share what decoding needs.

    Within the affinity of the process and the quota of its container.
    """
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text(encoding="ascii").strip() if siblings.exists() else str(cpu))
    return _within_quota(len(cores))


def usable_cpus() -> int:
    """Processors that this process may use, two for a core with two threads."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return _within_quota(len(os.sched_getaffinity(0)))


def _within_quota(n: int) -> int:
    quota = cpu_quota()
    return n if quota is None else max(1, min(n, int(quota)))


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Processors' worth of time that the container, or any control group around it, allows; None without a limit.

    A process with more threads than that is stopped amid a token until its next period.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None  # no Linux
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounted / "cpu" if controllers else mounted
        for folder in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents):
            quotas += _quotas(folder)
            if folder == root:
                break
    return min(quotas, default=None)


def _quotas(folder: Path) -> list[float]:
    """The limit that one control group sets: version 2 has it in one file, version 1 in two."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        return [int(quota) / int(period)] if quota not in ("max", "-1") else []
    except (OSError, ValueError, ZeroDivisionError):
        return []


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        if platform.system() == "Linux":
            with open("/proc/cpuinfo", encoding="utf-8") as file:
                for line in file:
                    if line.startswith("model name"):
                        return line.split(":", 1)[1].strip()
        if platform.system() == "Darwin":
            told = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True)
            return told.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return platform.processor() or platform.machine()


def describe_machine() -> str:
    """Processor, physical cores, memory and system, in one line."""
    memory = psutil.virtual_memory().total / 2**30
    n_cores = physical_cores()
    return f"{cpu_name()}, {n_cores} core{'s' * (n_cores > 1)}, {memory:.0f} GiB, {platform.system()} {platform.machine()}"
