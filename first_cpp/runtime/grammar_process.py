"""llama.cpp's grammars in a process of their own, run as a script: `grammar_process.py MODEL`.

llama.cpp ends its process for some grammars and never returns from others. This one holds the vocabulary alone, reads requests
from stdin, and ends when stdin does, when a request takes too long, or when it has been idle for a while.

A request: int32 n, int32 number, uint8 kind, n bytes: GRAMMAR with GBNF, or TOKEN with the int32 that the answer went on with.
The reply, likewise: MASK with a bit per token, lowest first, or ERROR with what llama.cpp said. READY comes first, number 0.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from typing import Any, BinaryIO

GRAMMAR, TOKEN = 0, 1
MASK, ERROR, READY = 0, 1, 2
HEAD = struct.Struct("<iiB")
SECONDS = 15.0  # for one request; who asks gives up before
IDLE_SECONDS = 120.0
MEMORY = 2 << 30  # bytes beyond what the vocabulary takes


class _Watch(threading.Thread):
    """Ends the process when it is at one thing for too long; a thread of Python's runs on while llama.cpp does not return."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.until = time.monotonic() + IDLE_SECONDS

    def run(self) -> None:
        while time.monotonic() < self.until:
            time.sleep(0.5)
        os._exit(3)


def _limit_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass  # a system without such limits


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        os._exit(0)
    return data


class _Grammars:
    def __init__(self, model_path: str) -> None:
        import ctypes

        import llama_cpp
        import numpy as np

        self._llama, self._np, self._ctypes = llama_cpp, np, ctypes
        self._said: list[str] = []
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: self._said.append(text.decode("utf-8", "replace")))
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.vocab_only, params.use_mmap = True, False
        self._model = llama_cpp.llama_model_load_from_file(model_path.encode(), params)
        if not self._model:
            raise OSError("".join(self._said)[-500:])
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._candidates = np.zeros(n_vocab, np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)]))
        self._bits = np.zeros(-(-n_vocab // 32) * 32, np.bool_)
        self._sampler: Any = None

    def begin(self, gbnf: bytes) -> tuple[int, bytes]:
        self._said.clear()
        if self._sampler:
            self._llama.llama_sampler_free(self._sampler)
        self._sampler = self._llama.llama_sampler_init_grammar(self._vocab, gbnf, b"root")
        if not self._sampler:
            said = " ".join("".join(self._said).split())
            return ERROR, said.encode()
        return self.mask()

    def go_on(self, token: int) -> tuple[int, bytes]:
        self._llama.llama_sampler_accept(self._sampler, token)
        return self.mask()

    def mask(self) -> tuple[int, bytes]:
        candidates = self._candidates
        candidates["id"] = self._np.arange(len(candidates))
        candidates["logit"] = 0
        data = self._ctypes.cast(candidates.ctypes.data, self._ctypes.POINTER(self._llama.llama_token_data))
        array = self._llama.llama_token_data_array(data, len(candidates), -1, False)
        self._llama.llama_sampler_apply(self._sampler, self._ctypes.byref(array))
        self._bits[: len(candidates)] = candidates["logit"] == 0
        return MASK, self._np.packbits(self._bits, bitorder="little").tobytes()


def _send(stream: BinaryIO, number: int, kind: int, body: bytes) -> None:
    stream.write(HEAD.pack(len(body), number, kind) + body)
    stream.flush()


def main() -> None:
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever llama.cpp prints is no reply
    watch = _Watch()
    watch.start()
    grammars = _Grammars(sys.argv[1])
    _limit_memory()
    _send(replies, 0, READY, b"")
    while True:
        n, number, kind = HEAD.unpack(_read(requests, HEAD.size))
        body = _read(requests, n)
        watch.until = time.monotonic() + SECONDS
        kind, reply = grammars.begin(body) if kind == GRAMMAR else grammars.go_on(int.from_bytes(body, "little"))
        watch.until = time.monotonic() + IDLE_SECONDS
        _send(replies, number, kind, reply)


if __name__ == "__main__":
    import signal

    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))  # modules beside this one are not Python's to find
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for who asks
    main()
