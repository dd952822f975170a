"""Writing beside, then renaming: a reader finds the old file or the whole new one, and nothing else is ever replaced."""

from __future__ import annotations

import os
import pathlib
import stat
import threading

import pytest
from routers_files import random_routers

from convert.__main__ import main
from first_cpp.errors import FirstCppError
from first_cpp.gguf.new_file import OutputError, check_folder, new_file, new_path


def test_bytes_and_text(tmp_path):
    with new_file(tmp_path / "b") as file:
        file.write(b"\x00\xff")
    with new_file(str(tmp_path / "t"), "w") as file:
        file.write("ü\n\r\n")
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "t").read_bytes() == "ü\n\r\n".encode()
    assert sorted(os.listdir(tmp_path)) == ["b", "t"]


def write_half(out: pathlib.Path, error: type[BaseException]) -> None:
    with new_file(out, "w") as file:
        file.write("half")
        file.flush()
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("existed", [False, True])
def test_an_error_leaves_what_was_there(tmp_path, error, existed):
    out = tmp_path / "out"
    if existed:
        out.write_text("mine")
    with pytest.raises(error):
        write_half(out, error)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"] * existed


def test_the_name_is_given_last(tmp_path):
    out = tmp_path / "out"
    out.write_text("old")
    with new_file(out, "w") as file:
        file.write("new")
        file.flush()
        assert out.read_text() == "old"
    assert out.read_text() == "new"


def test_two_writers_of_one_name(tmp_path):
    """Each writes a file of its own; the one that ends last is what stands there."""
    out = tmp_path / "out"
    entered = threading.Barrier(2)

    def write(text: str) -> None:
        with new_file(out, "w") as file:
            file.write(text)
            entered.wait(10)

    threads = [threading.Thread(target=write, args=(letter * 1000,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out.read_text() in ("a" * 1000, "b" * 1000)
    assert os.listdir(tmp_path) == ["out"]


def test_links_are_followed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder / "file")  # dangling at first
    for text in ("one", "two"):
        with new_file(tmp_path / "link", "w") as file:
            file.write(text)
        assert (folder / "file").read_text() == text
        assert (tmp_path / "link").is_symlink()


def test_permissions_are_kept(tmp_path):
    out = tmp_path / "out"
    out.write_text("old")
    out.chmod(0o600)
    with new_file(out, "w") as file:
        file.write("new")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with new_file(tmp_path / "other", "w") as file:
        file.write("new")
    (tmp_path / "plain").touch()
    assert (tmp_path / "other").stat().st_mode == (tmp_path / "plain").stat().st_mode


def special(kind: str, folder: pathlib.Path) -> str:
    path = folder / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        return "/dev/null"
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "is a pipe, no regular file"),
        ("folder", "is a folder"),
        ("device", "is a device, no regular file"),
        ("link to a device", "is a device, no regular file"),
    ],
)
def test_what_is_no_regular_file_is_never_replaced(tmp_path, tiny, capsys, kind, said):
    out = special(kind, tmp_path)
    before = os.stat(out)
    for write in (new_file, new_path):
        with pytest.raises(OutputError, match=said), write(out):
            pass
    routers = random_routers(str(tmp_path / "r.safetensors"))
    for sidecar in ([], ["--sidecar"]):
        assert main(["--routers", routers, "--model", tiny, "--out", out, "--force", "--quiet", *sidecar]) == 2
        assert said in capsys.readouterr().err
    after = os.stat(out)
    assert (after.st_mode, after.st_ino, after.st_rdev) == (before.st_mode, before.st_ino, before.st_rdev)


def test_folders_that_are_not_there(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "no" / "out", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match=r"the folder .* does not exist"), new_file(out):
            pass


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):  # root may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OutputError, match=f"the folder {tmp_path} is not writable"), new_file(tmp_path / "out"):
        pass


@pytest.mark.parametrize("path", ["there", "there/report", "there/a/report"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch, path):
    (tmp_path / "there").mkdir()
    check_folder(str(tmp_path / path), ["report.md"])
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(OutputError, match=f"{path} cannot be written: the folder {tmp_path / 'there'} is not writable"):
        check_folder(str(tmp_path / path), ["report.md"])
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=f"report cannot be made: {tmp_path / 'file'} is no folder"):
        check_folder(str(tmp_path / "file" / "report"), [])


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(FirstCppError, match="cannot be written: File name too long"), new_file(tmp_path / ("x" * 300)):
        pass


def test_new_path_is_for_those_who_open_by_themselves(tmp_path):
    out = tmp_path / "out"
    with new_path(out) as part:
        assert pathlib.Path(part).parent == tmp_path
        pathlib.Path(part).write_text("whole")
        assert not out.exists()
    assert out.read_text() == "whole"
    assert os.listdir(tmp_path) == ["out"]
