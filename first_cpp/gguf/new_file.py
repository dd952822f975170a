"""Writing a file beside its final name, then renaming it: a reader finds the old file or the whole new one."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from typing import IO, BinaryIO, Literal, TextIO, overload

from ..errors import FirstCppError

_counter = itertools.count()


class OutputError(FirstCppError, OSError):
    """An output that must not or cannot be written."""


def check_output(out: str, inputs: Iterable[str], force: bool, n_bytes: int) -> None:
    """Raise OutputError, before any work, where `out` cannot become a file of `n_bytes` bytes.

    inputs: files that are read meanwhile, so none of them may be `out`. force: an existing file may be replaced; what is
    no regular file never is.

    >>> check_output("model.gguf", inputs=[], force=False, n_bytes=0)
    Traceback (most recent call last):
    first_cpp.gguf.new_file.OutputError: model.gguf exists; use --force to overwrite it
    """
    folder = _folder(check_regular(out))
    for path in inputs:
        if os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path):
            raise OutputError(f"the output {out} is the input {path}; choose another name")
    if os.path.exists(out) and not force:
        raise OutputError(f"{out} exists; use --force to overwrite it")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{out} cannot be written: the folder {folder} is not writable")
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OutputError(f"{out} needs {n_bytes} bytes, {folder} has {free} free")


def check_folder(folder: str, names: Iterable[str]) -> None:
    """Raise OutputError, before any work, where `folder` is there and is none, or holds no regular files by these names, and
    where nothing can be written to it, or it cannot be made.

    >>> check_folder("/dev/null", ["report.md"])
    Traceback (most recent call last):
    first_cpp.gguf.new_file.OutputError: /dev/null is a device, no folder; choose another name
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = os.stat(folder).st_mode
        if not stat.S_ISDIR(mode):
            raise OutputError(f"{folder} is {kind_of(mode)}, no folder; choose another name")
        for name in names:
            check_regular(os.path.join(folder, name))
    above = os.path.realpath(folder)
    while not os.path.exists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise OutputError(f"{folder} cannot be made: {above} is no folder")
    if not os.access(above, os.W_OK):
        raise OutputError(f"{folder} cannot be written: the folder {above} is not writable")


@overload
def new_file(path: str | os.PathLike[str]) -> contextlib.AbstractContextManager[BinaryIO]: ...
@overload
def new_file(path: str | os.PathLike[str], mode: Literal["wb"]) -> contextlib.AbstractContextManager[BinaryIO]: ...
@overload
def new_file(path: str | os.PathLike[str], mode: Literal["w"]) -> contextlib.AbstractContextManager[TextIO]: ...
def new_file(path: str | os.PathLike[str], mode: str = "wb") -> contextlib.AbstractContextManager[IO[str] | IO[bytes]]:
    """A file that is named `path` once all of it is on disk; on an error or interrupt inside, `path` stays as it was.

    mode: "wb" for bytes, "w" for text (UTF-8, newlines as given). A link is followed, an existing file's permissions are
    kept. Raises OutputError for a folder, device or pipe at `path`, for a folder that does not exist or is not writable.

    >>> with new_file("answers.txt", "w") as file:
    ...     _ = file.write("one answer")
    >>> open("answers.txt").read()
    'one answer'
    """
    return _new_file(os.fspath(path), mode)


@contextlib.contextmanager
def _new_file(path: str, mode: str) -> Iterator[IO[str] | IO[bytes]]:
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with new_path(path) as part, open(part, mode, **text) as file:  # type: ignore[call-overload]
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def new_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """As `new_file`, for what opens its output by itself: the path to write, renamed to `path` when the block ends.

    >>> with new_path("copy.txt") as part:
    ...     with open(part, "w") as file:
    ...         _ = file.write("whole")
    >>> open("copy.txt").read()
    'whole'
    """
    target = check_regular(os.fspath(path))
    folder = _folder(target)
    part = f"{target}.{os.getpid()}-{next(_counter)}.part"
    try:
        with open(part, "wb"):
            pass
    except OSError as error:
        why = f"the folder {folder} is not writable" if isinstance(error, PermissionError) else error.strerror
        raise OutputError(f"{os.fspath(path)} cannot be written: {why}") from error
    try:
        if os.path.exists(target):
            shutil.copymode(target, part)
        yield part
        os.replace(part, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


def check_regular(path: str) -> str:
    """The file that `path` means, links followed; it need not be there. Raises OutputError for what a rename would destroy.

    >>> check_regular("/dev/null")
    Traceback (most recent call last):
    first_cpp.gguf.new_file.OutputError: /dev/null is a device, no regular file: it is not replaced
    """
    target = os.path.realpath(path)
    try:
        mode = os.stat(target).st_mode
    except OSError:
        return target  # not there; what else is wrong shows when it is opened
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path} is a folder; the name of a file is needed")
    if not stat.S_ISREG(mode):
        raise OutputError(f"{path} is {kind_of(mode)}, no regular file: it is not replaced")
    return target


def _folder(target: str) -> str:
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise OutputError(f"{target} cannot be written: the folder {folder} does not exist")
    return folder


def kind_of(mode: int) -> str:
    """What a file of this `st_mode` is, with its article.

    >>> kind_of(os.stat("/dev/null").st_mode)
    'a device'
    """
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    found = next((name for test, name in kinds if test(mode)), None)
    return found or ("a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "a file")
