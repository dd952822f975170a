"""Models by name: through the real huggingface_hub from a hub on this machine, from its cache; the list of what is there."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from fake_hub import fake_hub
from in_process import command
from routers_files import routed_model

from convert.__main__ import main as convert
from first_cpp.cli.demo import _model
from first_cpp.cli.main import main
from first_cpp.cli.model_name import HubName, find_model, find_model_to_use
from first_cpp.cli.model_options import ModelOptions
from first_cpp.errors import MissingExtraError, MissingFileError, OptionError
from first_cpp.gguf.bundled import find_demo_model
from first_cpp.gguf.demo_model import path_with_routers

FILES = [
    "a-Q8_0.gguf",
    "a-Q4_K_M.gguf",
    "a-f16-00001-of-00002.gguf",
    "a-f16-00002-of-00002.gguf",
    "mmproj-f16.gguf",
    "README.md",
]


@pytest.mark.parametrize(
    ("wanted", "file"),
    [
        (None, "a-Q4_K_M.gguf"),
        ("q8_0", "a-Q8_0.gguf"),
        ("a-Q8_0.gguf", "a-Q8_0.gguf"),
        ("*q8*", None),
        ("*Q8*", "a-Q8_0.gguf"),
        ("F16", "a-f16-00001-of-00002.gguf"),
        ("8_0", None),
        ("*", None),
        ("mmproj-f16.gguf", None),
    ],
)
def test_which_file_a_name_means(wanted, file):
    name = HubName("org/repo", wanted)
    if file is not None:
        assert name.choose(FILES) == file
        return
    with pytest.raises(OptionError, match=r"names (none|several) of its files.*a-Q4_K_M.gguf, a-Q8_0.gguf, a-f16-00001"):
        name.choose(FILES)


def test_without_a_usual_type_the_only_file_is_meant():
    assert HubName("org/repo").choose(["sub/odd.gguf", "README.md"]) == "sub/odd.gguf"
    with pytest.raises(OptionError, match=r"name one.*one-IQ1_S.gguf, two-IQ1_M.gguf"):
        HubName("org/repo").choose(["one-IQ1_S.gguf", "two-IQ1_M.gguf"])
    with pytest.raises(OptionError, match="has no GGUF file"):
        HubName("org/repo").choose(["model.safetensors"])


@pytest.mark.parametrize("name", ["hf:", "hf:repo", "hf:org/repo:", "hf:org/repo/file.gguf", "hf:org repo/x"])
def test_a_name_that_cannot_be_one_is_refused_before_any_work(name):
    with pytest.raises(OptionError, match="names no model: hf:USER/NAME"):
        find_model(name)


@pytest.mark.parametrize("words", [("run", "-m", "smollm2", "x"), ("calibrate", "-m", "smollm2", "--out", "o.gguf"),
                                   ("inspect", "smollm2"), ("bench", "-m", "smollm2"), ("demo", "-m", "smollm2")])  # fmt: skip
def test_a_word_that_is_no_model_names_what_could_be_meant(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    told = "there is no file smollm2; a model is a GGUF file, demo, or hf:USER/NAME; `first-cpp models` lists what is here"
    assert capsys.readouterr().err == f"error: {told}\n"
    (tmp_path / "smollm2").touch()
    assert find_model("smollm2") == "smollm2"  # where there is such a file it is meant
    assert (find_model("./gone"), find_model("gone.gguf")) == ("./gone", "gone.gguf")  # paths: their reader says so


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"-m hf:org/repo needs huggingface_hub.*first-cpp\[hub\]"):
        find_model("hf:org/repo")


def test_demo_is_a_name_unless_there_is_such_a_file(smollm2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("demo") == find_model(None) == find_demo_model()
    (tmp_path / "demo").touch()
    assert find_model("demo") == find_model_to_use("demo") == "demo"


@pytest.fixture
def everyday(tiny, models, monkeypatch):
    """A small model with routers in the place of the demo model with its everyday ones."""
    made = routed_model(tiny, models, seed=314)
    monkeypatch.setattr("first_cpp.cli.model_name.demo_model_with_routers", lambda say: made)
    return made


def test_verbs_that_use_a_model_take_demo_with_its_routers(everyday, smollm2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ModelOptions("demo").path == ModelOptions().path == find_model_to_use("demo") == everyday
    for given in ({"routers": "r.gguf"}, {"lora": "l.gguf"}):  # somebody's own, for the model as it came
        assert ModelOptions("demo", **given).path == ModelOptions(**given).path == smollm2
    assert "6 layers x 128 values" in command("inspect", "demo").stdout
    done = command("bench", "-m", "demo", "-p", "0", "-n", "2", "-r", "1", "--skip", "0", "--no-resident", "-o", "json")
    assert {row["model_filename"] for row in json.loads(done.stdout)} == {everyday}, done.stderr


def test_the_demo_of_demo_is_the_demo(monkeypatch, tmp_path, tiny):
    """By name as without -m: the model with its everyday adapter."""
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("first_cpp.cli.demo.find_model_to_use", lambda name, _offline: asked.append(name) or tiny)
    for given in (None, "demo"):
        path, name, routers, following = _model(argparse.Namespace(model=given, offline=False))
        assert (path, routers) == (tiny, None)
        assert "everyday adapter" in name
        assert following == [["first-cpp", "chat"], ["first-cpp", "bench", "-m", "demo"]]
    assert asked == [None, "demo"]


# -- through huggingface_hub ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tiny, tiny_q8, models):
    files = {"tiny-Q8_0.gguf": tiny_q8, "deep/tiny-F32.gguf": tiny, "README.md": __file__}
    with fake_hub({"org/tiny-GGUF": files, "org/first": {"m-first.gguf": routed_model(tiny, models, seed=311)}}) as started:
        yield started


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def first_cpp(*arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "first_cpp", *map(str, arguments)]
    return subprocess.run(words, env={**os.environ, **env}, capture_output=True, text=True, check=False)


RUN = ("--temp", "0", "--raw", "-n", 4, "-c", 64, "--json", "Once")


def test_a_model_of_the_hub_answers_as_the_file_does_and_again_offline(hub, cache, tiny_q8):
    env = hub.variables(cache)
    wanted = json.loads(first_cpp("run", "-m", tiny_q8, *RUN, env=env).stdout)["text"]
    done = first_cpp("run", "-m", "hf:org/tiny-GGUF", *RUN, env=env)
    assert json.loads(done.stdout)["text"] == wanted, done.stderr
    assert "GET org/tiny-GGUF/resolve/main/tiny-Q8_0.gguf" in hub.requests
    n_requests = len(hub.requests)
    again = first_cpp("run", "-m", "hf:org/tiny-GGUF:q8_0", "--offline", *RUN, env=env)
    assert json.loads(again.stdout)["text"] == wanted, again.stderr
    assert len(hub.requests) == n_requests


def test_without_the_hub_the_cache_is_taken_and_said(hub, cache):
    first_cpp("inspect", "hf:org/first", env=hub.variables(cache))
    gone = {**hub.variables(cache), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = first_cpp("inspect", "hf:org/first", env=gone)
    assert "6 layers x 128 values" in done.stdout
    assert "the hub cannot be reached" in done.stderr
    missing = first_cpp("inspect", "hf:org/other", env=gone)
    assert missing.returncode == 1
    assert "hf:org/other cannot be downloaded, and is not in the cache" in missing.stderr


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf:org/gone", (), "hf:org/gone does not exist, or only for those logged in"),
        ("hf:org/tiny-GGUF:Q2_K", (), "hf:org/tiny-GGUF: 'Q2_K' names none of its files; after a colon give"),
        ("hf:org/gone", ("--offline",), "hf:org/gone is not in the cache; without --offline it is downloaded"),
    ],
)
def test_what_the_hub_does_not_have(hub, tmp_path, name, options, message):
    done = first_cpp("inspect", name, *options, env=hub.variables(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_every_command_that_takes_a_model_takes_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    offline, name = "--offline", "hf:org/gone"
    for verb, rest in {
        "bench": (), "calibrate": ("--out", tmp_path / "o.gguf"), "chat": (), "demo": (), "serve": (),
        "eval": ("--data", "d.jsonl", "--out", "o"), "train": ("--data", "d.jsonl", "--out", tmp_path / "run"),
    }.items():  # fmt: skip
        (tmp_path / "d.jsonl").write_text('{"task": "qa", "prompt": "a", "response": "b"}\n')
        done = command(verb, "--model", name, offline, *map(str, rest))
        assert "hf:org/gone is not in the cache" in done.stderr, (verb, done.stderr)
    done = command("--routers", "r.safetensors", "--model", name, offline, "--out", "o.gguf", entry=convert)
    assert "hf:org/gone is not in the cache" in done.stderr


# -- the list ------------------------------------------------------------------------------------------------------------


def test_the_list_has_the_cache_the_folder_and_routers(hub, cache, tiny, tiny_q8, models, tmp_path, monkeypatch):
    env = hub.variables(cache)
    first_cpp("inspect", "hf:org/tiny-GGUF", env=env)
    shutil.copy(routed_model(tiny_q8, models, seed=312), tmp_path / "b-first.gguf")
    shutil.copy(routed_model(tiny, models, seed=313, sidecar=True), tmp_path / "c-side.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    done = first_cpp("models", tmp_path, env=env)
    assert done.returncode == 0
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert lines["NAME"] == ["SIZE", "TYPE", "LAYERS", "ROUTERS"]
    size = f"{pathlib.Path(tiny_q8).stat().st_size / 1e6:.1f}"
    assert lines["hf:org/tiny-GGUF:tiny-Q8_0.gguf"] == [size, "MB", "Q8_0", "6", "no"]
    assert lines[str(tmp_path / "b-first.gguf")][2:] == ["Q8_0", "6", "yes"]
    assert lines[str(tmp_path / "c-side.gguf")][2:] == ["adapter", "yes"]
    assert done.stderr == f"not listed: {tmp_path / 'broken.gguf'} is truncated: a GGUF header has 24 bytes, the file 4\n"
    found = json.loads(first_cpp("models", "--json", tmp_path, env=env).stdout)
    names = [one["name"] for one in found]
    assert names == [line.split()[0] for line in done.stdout.splitlines()[1:]]
    for one in found:  # each name is one that -m takes
        monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hub"))
        assert os.path.samefile(one["path"], first_path(one["name"], env))


def test_the_demo_model_is_listed_with_its_routers_made_or_not(smollm2, tiny, models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("first_cpp.cli.list_models.cached_files", dict)

    def listed():
        assert main(["models", "--json", str(tmp_path)]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["name"], found["routers"]) == ("demo", True)
        return found["path"]

    assert listed() == smollm2
    assert not (tmp_path / "cache").exists()
    made = pathlib.Path(path_with_routers())
    made.parent.mkdir(parents=True)
    shutil.copy(routed_model(tiny, models, seed=315), made)
    assert listed() == str(made)


def first_path(name: str, env: dict[str, str]) -> str:
    code = "import sys; from first_cpp.cli.model_name import find_model; print(find_model(sys.argv[1], True))"
    return subprocess.run(
        [sys.executable, "-c", code, name], env={**os.environ, **env}, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_an_empty_list_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("first_cpp.cli.list_models.find_demo_model", _no_demo)
    monkeypatch.setattr("first_cpp.cli.list_models.cached_files", dict)
    assert main(["models", str(tmp_path)]) == 0
    assert "-m hf:USER/NAME downloads one" in capsys.readouterr().err
    assert main(["models", str(tmp_path / "gone")]) == 2


def _no_demo() -> str:
    raise MissingFileError("none")
