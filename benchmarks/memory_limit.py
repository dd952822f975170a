"""A model larger than memory: pages of skipped layers are never read, so decoding needs less of the disk.

The process is held by a cgroup to less memory than the file needs (Linux, root). Where there is no cgroup to write to, every
token finds the file's pages evicted instead.

python benchmarks/memory_limit.py --limit 0.9 --skip 0,0.25,0.4
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import llama_cpp
from common import SETTINGS, parser, save

from first_cpp import Llama
from first_cpp.bench.models import synthetic_model
from first_cpp.gguf.model_file import ModelFile
from first_cpp.skip import layers_for_share

BESIDE = 160 << 20  # Python, the libraries, KV cache and buffers of the process
MADV_DONTNEED = 4


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--shape", default="llama-3.2-1b")
    arguments.add_argument("--type", default="q8_0", help="a type that llama.cpp reads from the map, not repacked")
    arguments.add_argument("--limit", type=float, default=0.9, help="memory, as a share of what the whole model needs")
    arguments.add_argument("--skip", default="0,0.25,0.4")
    arguments.add_argument("--tokens", type=int, default=8)
    arguments.add_argument("--child", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.child:
        child(json.loads(args.child))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        model = synthetic_model(args.shape, args.type, folder).path
        size = os.path.getsize(model)
        limit = int((size + BESIDE) * args.limit)
        for share in (float(part) for part in args.skip.split(",")):
            with memory_cgroup(limit) as join:
                rows.append(run_child(model, share, args.tokens, join))
    for row in rows:
        row["speedup"] = rows[0]["seconds_per_token"] / row["seconds_per_token"]
    how = "cgroup" if rows[0]["limited"] else "evicted before every token"
    save(
        args.out, {"shape": args.shape, "type": args.type, "file_bytes": size, "limit_bytes": limit, "how": how, "shares": rows}
    )


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Callable[[str], object] | None]:
    """A cgroup (version 2 or 1) of at most `limit` bytes; gives a function that puts a process into it, None without one."""
    for parent, name in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        group = pathlib.Path(parent, f"first-cpp-bench-{os.getpid()}")
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / name).exists():  # the kernel puts it there
                (group / name).write_text(str(limit))
                break
        with contextlib.suppress(OSError):
            group.rmdir()
    else:
        yield None
        return
    try:
        yield (group / "cgroup.procs").write_text
    finally:
        group.rmdir()


def run_child(model: str, share: float, n_tokens: int, join: Callable[[str], object] | None) -> dict[str, object]:
    evict(model)  # pages that are in the page cache already are on another group's account
    given = json.dumps([model, share, n_tokens, join is None])
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    if join is not None:
        join(str(process.pid))
    found, _ = process.communicate("go\n")
    if process.returncode:
        raise RuntimeError(f"the process at skip={share} ended with {process.returncode}: too little memory even so?")
    return {**json.loads(found), "limited": join is not None}


def evict(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(given: list[object]) -> None:
    """Decode and print the time, the major faults and the bytes read for each token."""
    model, share, n_tokens, evicting = given
    sys.stdin.readline()
    n_layer = ModelFile.open(str(model)).n_layer
    count = layers_for_share(float(share), n_layer)
    start = (n_layer - count) // 2
    settings = {"n_ctx": 256, **SETTINGS}
    skipped = list(range(start, start + count))
    llm = Llama(str(model), skip=skipped, **settings) if skipped else llama_cpp.Llama(str(model), **settings)
    answer = llm.generate([100, 101, 102, 103], temp=0.0)
    for _ in range(3):  # the prompt needed every page: let those of the skipped layers go
        next(answer)
    seconds, faults, read = [], [], []
    for _ in range(int(n_tokens)):
        if evicting:
            forget_mapping(str(model))
        before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt, bytes_read()
        next(answer)
        seconds.append(time.perf_counter() - before[0])
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before[1])
        read.append(bytes_read() - before[2])
    print(
        json.dumps(
            {
                "skip": share,
                "layers_skipped": f"{count} of {n_layer}",
                "seconds_per_token": statistics.median(seconds),
                "major_faults_per_token": statistics.median(faults),
                "bytes_read_per_token": statistics.median(read),
            }
        )
    )


def bytes_read() -> int:
    """Bytes that this process made the disk read so far."""
    for line in pathlib.Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def forget_mapping(path: str) -> None:
    """Take the file's pages out of this process and out of the page cache."""
    libc = ctypes.CDLL(None)
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(os.path.realpath(path)):
            begin, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)
    evict(path)


if __name__ == "__main__":
    main()
