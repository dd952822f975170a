"""What a function comes to in a process of its own, which it may end or hang."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable

MEMORY = 2 << 30


def run_apart(work: Callable[[], str], seconds: float) -> str:
    """What `work` returns in a fork of this process; "died: SIGNAL" or "hung" where it does not. It loads its own models."""
    read, write = os.pipe()
    log = os.memfd_create("log")
    child = os.fork()
    if child == 0:
        os.close(read)
        for stream in (1, 2):
            os.dup2(log, stream)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            os.write(write, work().encode(errors="replace")[:60000])  # what a pipe holds
        finally:
            os._exit(0)
    os.close(write)
    found = _wait(child, seconds)
    with os.fdopen(read, "rb") as pipe, os.fdopen(log, "rb") as file:
        if found is None:
            return "hung"
        os.lseek(log, 0, os.SEEK_SET)
        said, last = pipe.read().decode(errors="replace"), file.read().decode(errors="replace").strip().splitlines()[-1:]
    if os.WIFSIGNALED(found):
        return f"died: {signal.Signals(os.WTERMSIG(found)).name} {' '.join(last)}"
    return said or f"died: exit code {os.WEXITSTATUS(found)} {' '.join(last)}"


def _wait(child: int, seconds: float) -> int | None:
    """The status of a child, None where it had to be killed."""
    end = time.monotonic() + seconds
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)
    return found[1]
