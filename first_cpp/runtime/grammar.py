"""GBNF as a mask on the logits. llama.cpp holds the grammar, in another process: it ends its process for some grammars and
never returns from others, and neither may cost the model."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import AnswerCancelled, GrammarError
from .grammar_process import ERROR, GRAMMAR, HEAD, TOKEN

MAX_BYTES = 1 << 20
SECONDS = 5.0  # for one token
START_SECONDS = 60.0  # for the process to be there: it reads the vocabulary
_TICK = 0.05
_SCRIPT = Path(__file__).with_name("grammar_process.py")


def check_text(grammar: str) -> None:
    """Raise GrammarError for what llama.cpp would misread; what it refuses itself is known when an answer begins."""
    if len(grammar.encode("utf-8", "replace")) > MAX_BYTES:
        raise GrammarError(f"the grammar has {len(grammar.encode())} bytes, at most {MAX_BYTES} are allowed")
    if "\0" in grammar:
        raise GrammarError("the grammar holds a NUL character; none is allowed")


class GrammarProcess:
    """The process that holds grammars for one model, started with the first one. One grammar at a time."""

    def __init__(self, model_path: str) -> None:
        self._model_path = model_path
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.SimpleQueue[tuple[int, int, bytes] | None] = queue.SimpleQueue()
        self._number = 0

    def be_there(self, cancelled: Callable[[], bool]) -> None:
        """Start the process unless it is there. Raises GrammarError where it cannot be, AnswerCancelled."""
        if self._process is None or self._process.poll() is not None:
            self._start()
            try:
                if self.reply(0, START_SECONDS, cancelled) is not None:
                    return
            except TimeoutError:
                self.close()
            raise GrammarError("the process that holds grammars did not start")

    def send(self, kind: int, body: bytes) -> int:
        """Ask for a mask; returns the number of the reply."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._number += 1
        with contextlib.suppress(OSError):  # it has ended: the reply says so
            self._process.stdin.write(HEAD.pack(len(body), self._number, kind) + body)
            self._process.stdin.flush()
        return self._number

    def reply(self, number: int, seconds: float, cancelled: Callable[[], bool]) -> tuple[int, bytes] | None:
        """The reply of that number; None if the process ended over it. Raises TimeoutError, AnswerCancelled."""
        until = time.monotonic() + seconds
        while True:
            try:
                found = self._replies.get(timeout=_TICK)
            except queue.Empty:
                if cancelled():
                    raise AnswerCancelled("the answer was cancelled") from None
                if time.monotonic() > until:
                    raise TimeoutError from None
                continue
            if found is None:
                return None
            if found[0] == number:
                return found[1:]

    def close(self) -> None:
        """End the process, whatever it is at. It is started again where it is needed again."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()

    def _start(self) -> None:
        self.close()
        self._replies = queue.SimpleQueue()
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        settings: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x08000000}
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(_SCRIPT), self._model_path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                **settings,
            )
        except OSError as error:
            raise GrammarError(f"grammars are held by a process of their own, which could not be started: {error}") from error
        assert self._process.stdout is not None
        threading.Thread(
            target=_take_replies, args=(self._process.stdout, self._replies), name="first_cpp grammar", daemon=True
        ).start()


def _take_replies(stream: BinaryIO, replies: queue.SimpleQueue[tuple[int, int, bytes] | None]) -> None:
    with stream:
        while len(head := stream.read(HEAD.size)) == HEAD.size:
            n, number, kind = HEAD.unpack(head)
            replies.put((number, kind, stream.read(n)))
    replies.put(None)


class GrammarMask:
    """The tokens with which one answer can go on, by a grammar. One per answer."""

    def __init__(self, process: GrammarProcess, grammar: str, ends: frozenset[int], cancelled: Callable[[], bool]) -> None:
        """ends: the tokens that end answers. Raises GrammarError for a grammar that llama.cpp does not take."""
        check_text(grammar)
        self._process, self._ends, self._cancelled = process, ends, cancelled
        process.be_there(cancelled)
        self._asked: int | None = process.send(GRAMMAR, grammar.encode())
        self._mask = self._take()

    def mask(self) -> npt.NDArray[np.uint32]:
        """uint32 [n_vocab / 32, rounded up], a bit per token, lowest first."""
        if self._asked is not None:
            self._mask = self._take()
        return self._mask

    def accept(self, token: int) -> None:
        """The answer went on with `token`. The next mask is made meanwhile, while the model computes."""
        if token not in self._ends:
            self._asked = self._process.send(TOKEN, token.to_bytes(4, "little"))

    def close(self) -> None:
        """The answer has ended. A mask that nobody takes any more is not waited for."""
        if self._asked is not None:
            try:
                self._process.reply(self._asked, 2 * _TICK, lambda: False)
            except TimeoutError:
                self._process.close()
            self._asked = None

    def _take(self) -> npt.NDArray[np.uint32]:
        assert self._asked is not None
        try:
            reply = self._process.reply(self._asked, SECONDS, self._cancelled)
        except TimeoutError:
            self._end()
            raise GrammarError(f"the grammar is too ambiguous: llama.cpp needed more than {SECONDS:g} s for a token") from None
        except BaseException:
            self._end()
            raise
        self._asked = None
        if reply is None:
            self._end()
            raise GrammarError("the grammar cannot be followed: it ended llama.cpp's grammar process")
        kind, body = reply
        if kind == ERROR:
            said = body.decode("utf-8", "replace")[:300]
            raise GrammarError(f"the grammar is not valid GBNF, has no rule `root`, or is left-recursive: {said}")
        return np.frombuffer(body, np.uint32)

    def _end(self) -> None:
        self._asked = None
        self._process.close()
