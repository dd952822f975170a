"""The machine that figures come from."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil


def physical_cores() -> int:
    """Physical cores that this process may use: two threads of one core would share what decoding needs."""
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text(encoding="ascii").strip() if siblings.exists() else str(cpu))
    return len(cores)


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
    return f"{cpu_name()}, {physical_cores()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"
