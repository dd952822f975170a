"""Files that are no models."""

from __future__ import annotations

import os
import pathlib

import pytest

from first_cpp import Llama, ModelFileError


def test_files_that_are_no_models(tmp_path, tiny):
    head = pathlib.Path(tiny).read_bytes()[:5000]
    cases = {
        "empty": (b"", "is empty"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        "html": (b"<!DOCTYPE html><html>404</html>", "web page"),
        "magic": (b"GGML" + head[4:], "not a GGUF file"),
        "short": (head[:20], "24 bytes"),
        "three": (head[:3], "not a GGUF file"),
        "kv": (head[:2000], "truncated or malformed"),
        "data": (pathlib.Path(tiny).read_bytes()[:-1000], "is truncated"),
        "v1": (head[:4] + b"\1\0\0\0" + head[8:], "version 1"),
        "v99": (head[:4] + b"\x63\0\0\0" + head[8:], "version 99"),
        "big-endian": (head[:4] + b"\0\0\0\3" + head[8:], "big-endian"),
        "n_kv": (head[:16] + b"\0\0\0\0\0\1\0\0" + head[24:], "malformed"),
        "pickle": (b"\x80\x04K\x01.", "not a GGUF file"),
    }
    for name, (content, said) in cases.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=said):
            Llama(str(path), verbose=False)
    with pytest.raises(ModelFileError, match="directory"):
        Llama(str(tmp_path), verbose=False)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="broken link"):
        Llama(str(tmp_path / "broken"), verbose=False)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ModelFileError, match="not a regular file"):
        Llama(str(tmp_path / "fifo"), verbose=False)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ModelFileError, match="loop"):
        Llama(str(tmp_path / "loop"), verbose=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "secret.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    with pytest.raises(PermissionError):
        Llama(str(path), verbose=False)
