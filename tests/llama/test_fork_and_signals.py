"""A model in a process that forks, or is told to end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from helpers import survives
from routers_files import routed_model


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=11)


def test_a_forked_process_is_told(routed):
    """As gunicorn does with --preload. OpenMP's threads stay with the parent: the child would wait for them without end."""
    done = survives(f"""
        import os, sys
        from first_cpp import Llama
        llm = Llama({routed!r}, skip=0.34, n_ctx=256, n_threads=2, verbose=False)
        def answer(): return [token for token, _ in zip(llm.generate([1, 5, 6, 7], temp=0.0), range(6))]
        expected = answer()
        child = os.fork()
        if child == 0:
            told = []
            for use in (answer, lambda: llm.eval([5]), lambda: Llama({routed!r}, verbose=False)):
                try: use()
                except RuntimeError as error: told.append(str(error))
            llm.close()
            print(*told, sep="\\n", flush=True)
            os._exit(0)
        print(os.waitpid(child, 0)[1], answer() == expected)
    """)
    *told, parent = done.stdout.splitlines()
    assert parent == "0 True", done.stderr
    assert len(told) == 3
    assert all("before this process was forked" in line for line in told)


def test_models_loaded_after_the_fork_alone(routed):
    done = survives(f"""
        import os
        from first_cpp import Llama
        child = os.fork()
        llm = Llama({routed!r}, skip=0.34, n_ctx=256, n_threads=2, verbose=False)
        answer = [token for token, _ in zip(llm.generate([1, 5, 6, 7], temp=0.0), range(6))]
        os.write(1, f"{{answer}}\\n".encode())  # in one piece: two processes write
        if child: os.waitpid(child, 0)
    """)
    first, second = done.stdout.splitlines()
    assert first == second


@pytest.mark.timed
def test_sigterm_ends_a_command_with_143_and_keeps_the_text(routed):
    process = subprocess.Popen(
        [sys.executable, "-m", "first_cpp", "run", "-m", routed, "--raw", "--temp", "0", "-c", "2048", "Once"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = process.stdout.read(1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "")
    assert 0 < len(first + out) < 1500


@pytest.mark.timed
def test_sigterm_takes_a_benchs_files_with_it(tiny, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "first_cpp", "bench", "-m", tiny, "--skip", "0.34", "-n", "400", "-r", "500"],
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not list(tmp_path.glob("*/*.gguf")):
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143
    assert list(tmp_path.glob("*/*.gguf")) == []
