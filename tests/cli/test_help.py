"""Help pages: each verb has one, and every example in them runs as written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from routers_files import routed_model

from convert import __main__ as convert
from first_cpp.cli.main import VERBS, setup_arg_parser


def verb_parsers():
    actions = setup_arg_parser()._subparsers._group_actions
    return actions[0].choices


def examples():
    for verb, parser in verb_parsers().items():
        for line in (parser.epilog or "").replace("\\\n", "").splitlines():
            if line.startswith("  ") and "first-cpp " in line:
                yield pytest.param(line.strip(), id=f"{verb}: {line.strip()[:50]}")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    text = verb_parsers()[verb].format_help()
    assert "usage: first-cpp" in text or "usage: " in text
    assert len(text.splitlines()) > 4


@pytest.mark.parametrize("verb", ["bench", "chat", "completion", "run", "serve"])
def test_verbs_show_examples(verb):
    assert verb_parsers()[verb].epilog.count("first-cpp ") >= 2


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_80_columns(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for line in verb_parsers()[verb].format_help().splitlines():
        assert len(line) <= 80, line


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("completion", "inspect", "models")])
def test_every_verb_takes_the_model_as_m(verb):
    assert {"-m", "--model"} <= set(verb_parsers()[verb]._option_string_actions)


def test_convert_takes_the_model_as_m():
    assert convert.setup_arg_parser().parse_args(["-m", "model.gguf", "--routers", "run", "--out", "x"]).model == "model.gguf"


def model_group(verb):
    """Option, default and help of what belongs to the model."""
    group = next(group for group in verb_parsers()[verb]._action_groups if group.title == "model")
    several = "; can be repeated"  # of serve's -m
    return [(action.option_strings, action.default, action.help.removesuffix(several)) for action in group._group_actions]


def test_the_command_line_needs_no_extra():
    """As in an environment with the wheel alone."""
    absent = ("torch", "transformers", "peft", "accelerate", "matplotlib", "fastapi", "uvicorn", "huggingface_hub")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent!r}))
from first_cpp.cli.main import setup_arg_parser
setup_arg_parser()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_harness_names_its_extra_in_one_line():
    code = "import runpy, sys; sys.modules['lm_eval'] = None; runpy.run_module('first_cpp.lm_eval', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = 'error: first_cpp.lm_eval needs lm_eval, which is not installed: pip install "first-cpp[lm-eval]"\n'
    assert (done.returncode, done.stderr) == (2, expected)


def test_verbs_that_answer_take_the_same_options_of_a_model():
    assert model_group("run") == model_group("chat") == model_group("serve")


@pytest.mark.slow  # loads SmolLM2 for each
@pytest.mark.parametrize("example", list(examples()))
def test_examples_run(example, smollm2, tmp_path, monkeypatch):
    """In an empty folder with the files that the examples name; what would take minutes is shortened."""
    for name in ("model.gguf", "dense.gguf"):
        shutil.copy(smollm2, tmp_path / name)
    for name in ("data.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"task": "qa", "prompt": "How long is it?", "response": "three metres"}\n')
    os.rename(routed_model(smollm2, tmp_path, n_layer=30, n_embd=576), tmp_path / "model-first.gguf")
    for folder in (".zfunc", "models"):
        (tmp_path / folder).mkdir()
    command = example.replace("first-cpp", f"{shlex.quote(sys.executable)} -m first_cpp", 1)
    for verb in ("run", "chat"):
        if f"first_cpp {verb}" in command and " -n " not in command:
            command = command.replace(f"first_cpp {verb}", f"first_cpp {verb} -n 24")
    if "first_cpp bench" in command:
        shorter = {"llama-3.2-1b": "tiny", "llama-3.2-3b": "tiny", "--type q4_0": "--type q8_0", "0,8192": "0,64"}
        for long, short in shorter.items():
            command = command.replace(long, short)
        command += " -p 16 -n 4 -r 1 --no-resident"
    if "first_cpp calibrate" in command:
        (tmp_path / "mine.txt").write_text("".join(f"What is {n} times seven?\n" for n in range(40)))
        os.remove(tmp_path / "model-first.gguf")  # the example makes it
        command = command.replace(" --minutes 20", "") + " --minutes 0.1 -n 8"
        if "--sets model-first.gguf" in command:  # what the first example makes
            shutil.copy(smollm2, tmp_path / "merged.gguf")
            before = "-m first_cpp calibrate -m model.gguf --out model-first.gguf --minutes 0.1 -n 8"
            command = f"{shlex.quote(sys.executable)} {before} && {command}"
    if "--prompts self" in command:
        command = command.replace("--limit 8", "--limit 2") + " -n 8"
    if "first_cpp tune" in command:  # a line each, and one pass over them
        lines = (json.dumps({"prompt": f"How long is bridge {n}?", "response": f"{n} metres"}) + "\n" for n in range(30))
        (tmp_path / "data.jsonl").write_text("".join(lines))
        command = command.replace(" --epochs 3 --minutes 5", "") + " --epochs 0.1 --minutes 0.1"
    if "first_cpp serve" in command:
        command = f"timeout --preserve-status --signal=TERM 6 {command} --port 0"
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("XDG_STATE_HOME", None)
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, input="Say hello.\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or ">" in example


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_scripts(shell, capsys):
    from first_cpp.cli.main import main

    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    options = () if shell == "tcsh" else ("--synthetic", "--max-skip")  # shtab completes verbs alone for tcsh
    for word in ("first-cpp", "serve", "chat", *options):
        assert word in script
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
