"""What this process may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from first_cpp import Llama
from first_cpp.runtime import machine


def written(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def quota(tmp_path: Path, groups: str) -> float | None:
    (tmp_path / "cgroup").write_text(groups)
    return machine.cpu_quota(tmp_path / "cgroup", tmp_path / "fs")


def test_the_quota_of_a_container(tmp_path):
    written(tmp_path / "fs", cpu__max="150000 100000\n")
    assert quota(tmp_path, "0::/\n") == 1.5


def test_the_least_quota_of_the_groups_around_counts(tmp_path):
    written(tmp_path / "fs", cgroup__procs="")
    written(tmp_path / "fs/a", cpu__max="200000 100000\n")
    written(tmp_path / "fs/a/b", cpu__max="max 100000\n")
    assert quota(tmp_path, "0::/a/b\n") == 2.0


def test_the_quota_of_version_1(tmp_path):
    written(tmp_path / "fs/cpu/docker/x", cpu__cfs_quota_us="300000\n", cpu__cfs_period_us="100000\n")
    assert quota(tmp_path, "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n") == 3.0
    written(tmp_path / "fs/cpu/docker/x", cpu__cfs_quota_us="-1\n")
    assert quota(tmp_path, "4:cpu,cpuacct:/docker/x\n") is None


@pytest.mark.parametrize("text", ["", "200000\n", "many 100000\n", "1 0\n"])
def test_a_quota_that_cannot_be_read_is_none(tmp_path, text):
    written(tmp_path / "fs", cpu__max=text)
    assert quota(tmp_path, "0::/\n") is None


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert machine.cpu_quota(tmp_path / "missing", tmp_path) is None


def test_threads_stay_within_the_quota(monkeypatch):
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.9)
    assert machine.physical_cores() == machine.usable_cpus() == 1
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.2)
    assert machine.physical_cores() == 1


def test_a_model_takes_what_its_process_may_use(tiny):
    llm = Llama(tiny, verbose=False)
    assert (llm.n_threads, llm.n_threads_batch) == (machine.physical_cores(), machine.usable_cpus())
    llm.close()
    llm = Llama(tiny, n_threads=3, n_threads_batch=1, verbose=False)
    assert (llm.n_threads, llm.n_threads_batch) == (3, 1)
    llm.close()
