"""`first-cpp train --processes N`: the same command N times on this machine, each process a rank of torch.distributed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

from ..runtime.machine import physical_cores
from .settings import TrainingError

OURS = "FIRST_CPP_TRAIN_RANK"
"""In the environment of what `launch` started."""
POLL, GRACE = 0.1, 10.0
"""Seconds between two looks, and those that the others have to end by themselves when one has failed."""


def is_rank() -> bool:
    """Whether this process is one of several already, by `launch`, torchrun or `accelerate launch`."""
    return OURS in os.environ or "RANK" in os.environ


def launch(n: int, out: str) -> None:
    """Run this process's command in `n` processes, the physical cores shared among them, to their end. out: folder of the run.

    Ctrl-C is passed on: they stop after their step. Raises TrainingError naming a process that ended in another way, and
    SystemExit with the exit code of the first where that has said why.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        said = [stack.enter_context(open(os.path.join(folder, str(rank)), "w+b")) for rank in range(1, n)]
        ranks = stack.enter_context(_started(n, said))
        try:
            failed = _watch(ranks)
        except KeyboardInterrupt:
            _interrupt(ranks)
            raise
        if failed is None:
            return
        code = ranks[failed].returncode
        if failed == 0 and code in (1, 2):
            raise SystemExit(code)
        words = _last_line(said[failed - 1]) if failed else ""
        raise TrainingError(
            f"process {failed} of {n} (from 0) ended with code {code}{words}; what the last checkpoint in {out} holds is kept, "
            "and the same command with --resume goes on; each process holds the model: fewer of them need less memory"
        )


def stop_with_parent() -> None:
    """In a process that `launch` started: stop as by Ctrl-C when who started it is gone."""
    if OURS not in os.environ:
        return

    def watch() -> None:
        while os.read(0, 1):  # not by sys.stdin, whose lock would still be held as the interpreter ends
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _started(n: int, said: Sequence[IO[bytes]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), OURS: "1"}
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, physical_cores() // n)))}
    ranks = list[subprocess.Popen[bytes]]()
    try:
        for rank in range(n):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(
                subprocess.Popen(
                    sys.orig_argv,
                    env={**os.environ, **shared, **threads, **own},
                    stdin=subprocess.PIPE,
                    stderr=said[rank - 1] if rank else None,
                    start_new_session=True,  # Ctrl-C reaches them from here, once
                )
            )
        yield ranks
    finally:
        for one in ranks:
            one.kill()
            one.wait()
            assert one.stdin is not None
            one.stdin.close()


def _watch(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """The rank that failed first, once all have ended or had time to; None where all is well."""
    first, until = None, 0.0
    while any(one.poll() is None for one in ranks):
        failed = [rank for rank, one in enumerate(ranks) if one.returncode]
        if failed and first is None:
            first, until = failed[0], time.monotonic() + GRACE
        if first is not None and time.monotonic() > until:
            break
        time.sleep(POLL)
    codes = [one.returncode for one in ranks]
    if codes[0] == 2:  # it has said why
        return 0
    killed = [rank for rank, code in enumerate(codes) if code not in (None, 0, 1, 2)]  # others fail as it no longer answers
    failed = [rank for rank, code in enumerate(codes) if code]
    return next(iter(killed + failed), None)


def _interrupt(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Pass Ctrl-C on until all have ended; a second one ends them at once."""
    while True:
        for one in ranks:
            if one.poll() is None:
                one.send_signal(signal.SIGINT)
        try:
            for one in ranks:
                one.wait()
        except KeyboardInterrupt:
            continue
        return


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f" ({last})" if last else ""
