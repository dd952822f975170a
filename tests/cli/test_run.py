"""`first-cpp run`: text to stdout, the rest to stderr, and every way it can end."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap

import pytest
from in_process import command
from routers_files import routed_model

from first_cpp import SkipError
from first_cpp.cli.model_options import watched
from first_cpp.cli.run import AnswerPrinter

COMMAND = [sys.executable, "-m", "first_cpp", "run"]


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=42)


def run(*args, stdin=""):
    return command("run", *args, text=stdin)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("verb", ["run", "chat"])
def test_bytes_that_are_no_text_are_refused(tiny, verb, errors):
    words = [*COMMAND[:-1], verb, "-m", tiny, "--chat-format", "chatml", "-n", "1"]
    surroundings = {**os.environ, "PYTHONIOENCODING": f"utf-8:{errors}"}
    done = subprocess.run(words, input=b"caf\xe9 au lait", capture_output=True, check=False, env=surroundings)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: stdin is not text: 'utf-8' codec can't decode byte 0xe9")


@pytest.mark.parametrize("words", [["caf\udce9"], ["--system", "caf\udce9", "Hello"], ["--stop", "caf\udce9", "Hello"]])
def test_bytes_that_are_no_text_are_refused_as_arguments(tiny, words):
    done = subprocess.run([*COMMAND, "-m", tiny, "--raw", *words], input="", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "it is not text: 'utf-8' codec can't decode byte 0xe9" in done.stderr


def test_text_beyond_ascii_is_read_where_the_locale_is_ascii(tiny):
    ascii_alone = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [*COMMAND, "-m", tiny, "--raw", "-n", "4", "--temp", "0", "--json", "Où"]
    here, there = (
        subprocess.run(words, input="été".encode(), capture_output=True, check=True, env=env) for env in (None, ascii_alone)
    )
    assert json.loads(here.stdout)["text"] == json.loads(there.stdout)["text"]
    assert json.loads(here.stdout)["first_cpp"]["prompt_tokens"] == json.loads(there.stdout)["first_cpp"]["prompt_tokens"]


def test_the_text_is_create_completions(routed, load):
    words = ("-m", routed, "--skip", "0.34", "--raw", "-n", "12", "--temp", "0", "Once upon")
    done = subprocess.run([*COMMAND, *words], input="", capture_output=True, text=True, check=False)
    expected = load(routed, skip=0.34, n_ctx=2048).create_completion("Once upon", max_tokens=12, temperature=0)
    assert done.returncode == 0
    assert done.stdout == expected["choices"][0]["text"] + "\n"
    assert done.stderr == ""
    here = run(*words)  # as the other tests ask it
    assert (here.stdout, here.stderr) == (done.stdout, "")


def test_one_json_object(routed):
    done = run("-m", routed, "--skip", "0.34", "--raw", "-n", "8", "--temp", "0", "--json", "Once upon")
    found = json.loads(done.stdout)
    assert found["finish_reason"] == "length"
    assert found["model"] == routed
    told = found["first_cpp"]
    assert len(told["skipped_layers"]) == 2
    assert len(told["keep"]) == told["n_layer"] == 6
    assert (told["tokens"], told["expected_speedup"] > 1, told["ttft_ms"] > 0, told["tpot_ms"] > 0) == (8, True, True, True)


def test_chat_template_system_message_and_stop(smollm2):
    args = ["-m", smollm2, "--temp", "0", "-n", "24"]
    plain = run(*args, "Say hello.").stdout
    assert plain.strip()
    assert run(*args, "--system", "You are a pirate.", "Say hello.").stdout != plain
    word = plain.split()[2]
    stopped = run(*args, "--stop", word, "Say hello.").stdout
    assert plain.startswith(stopped.rstrip("\n"))
    assert word not in stopped


def test_prompt_from_stdin_and_beside_it(routed):
    args = ["-m", routed, "--raw", "-n", "8", "--temp", "0"]
    given = run(*args, "Once upon").stdout
    assert run(*args, stdin="Once upon").stdout == given
    assert run(*args, "-", stdin="Once upon").stdout == given
    assert run(*args, "Summarize", stdin="a text").stdout == run(*args, "Summarize\n\na text").stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the prompt is empty"),
        (["  "], "the prompt is empty"),
        (["-m", "nowhere.gguf", "x"], "nowhere.gguf"),
        (["--skip", "7", "x"], "skip=7: a share of layers is at least 0 and below 1; for layer 7 alone write 7,\n"),
        (["--skip", "50%", "x"], "skip=50%: allowed are auto, none, a share like 0.3, or layers like 7,11; one layer: 7,\n"),
        (["--raw", "--system", "s", "x"], "--system is part of a chat"),
        (["-t", "0", "x"], "at least 1"),
        (["-t", "5000", "x"], "above 512"),
        (["--temp", "nan", "x"], "not a number of 0 or more"),
        (["--stop", "", "x"], "it is empty"),
        (["--chat-format", "foo", "x"], "--chat-format foo does not exist"),
        (["-m", "", "x"], "does not exist"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(args, message):
    done = run(*args)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_share_without_routers_says_what_to_do_at_a_command_line_and_in_python(tiny, load):
    done = run("-m", tiny, "--skip", "0.25", "x")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: skip=0.25 needs routers and there are none in {tiny}")
    for remedy in (
        f"`first-cpp calibrate -m {tiny} --out FILE`",
        "--routers FILE",
        "--skip 7,11",
        "routers=FILE",
        "skip=[7, 11]",
    ):
        assert remedy in done.stderr
    with pytest.raises(SkipError) as refused:
        load(tiny).skip = 0.25
    assert done.stderr == f"error: {refused.value}\n"


def test_a_prompt_too_long_fails_plainly(routed):
    done = run("-m", routed, "--raw", "-c", "64", "word " * 200)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: Requested tokens \(\d+\) exceed context window of \d+; a larger -c TOKENS has room\n", done.stderr
    )


def test_a_closed_pipe_ends_it_quietly(routed):
    process = subprocess.Popen(
        [*COMMAND, "-m", routed, "--raw", "--temp", "0.9", "-c", "2048", "--seed", "0", "Once"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.timed
def test_ctrl_c_ends_with_130_and_keeps_the_text(routed):
    process = subprocess.Popen(
        [*COMMAND, "-m", routed, "--raw", "--temp", "0", "-c", "2048", "Once"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err == ""
    assert len(first + out) < 1500  # it was stopped


def test_loading_is_watched(routed, monkeypatch):
    from rich.progress import Progress

    seen = []
    monkeypatch.setattr(Progress, "update", lambda self, task, completed: seen.append(completed))
    llm = watched(routed, 1000)(routed, verbose=False)
    try:
        assert llm("Once", max_tokens=2)["usage"]["completion_tokens"] == 2
    finally:
        llm.close()
    assert seen[-1] == 1000
    assert seen == sorted(seen)


def test_fidelity_by_an_explicit_call(tiny, models):
    model = routed_model(tiny, models, seed=47)
    arguments = ["-m", model, "--skip", "0.34", "--temp", "0", "-n", "12", "--raw", "Once"]
    found = json.loads(run(*arguments, "--json", "--fidelity").stdout)["fidelity"]
    assert found["positions"] >= 11
    assert found["share"] == round(found["equal"] / found["positions"], 4)
    assert "fidelity" not in json.loads(run(*arguments, "--json").stdout)
    said = run(*arguments, "--fidelity").stderr
    assert f"{found['equal']} of {found['positions']} choices are the full model's" in said
    dense = run(*arguments, "--fidelity", "--skip", "none").stderr
    assert "nothing was skipped" in dense


def on_a_terminal(columns, arguments, stream):
    """What `first-cpp run` shows on a terminal that is its stdout or stderr."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
    done = subprocess.run([*COMMAND, *arguments], check=False, **streams)
    os.close(theirs)
    assert done.returncode == 0
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    return shown


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize("columns", [60, 200])
def test_the_line_under_an_answer_fits_the_terminal(routed, columns):
    arguments = ["-m", routed, "--skip", "0.34", "--raw", "-n", "12", "--temp", "0", "Once upon"]
    (line,) = [line for line in on_a_terminal(columns, arguments, "stderr").splitlines() if "tokens/s" in line]
    assert len(line) <= columns
    assert ("over dense" in line) is (columns == 200)


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_an_answer_breaks_no_word_at_the_edge_of_the_terminal(monkeypatch):
    """The tiny model's answers have hardly a word: a known text stands in for them."""
    text = "The keeper of the lighthouse wrote a letter. " * 3
    code = (
        "from first_cpp.cli.run import *\nwith AnswerPrinter() as shown:\n    for part in sys.argv[1]:\n        shown.add(part)"
    )
    monkeypatch.setattr(sys.modules[__name__], "COMMAND", [sys.executable, "-c", code])
    assert on_a_terminal(30, [text], "stdout").replace("\r\n", "\n") == textwrap.fill(text, 30) + "\n"


def test_an_error_amid_an_answer_loses_no_word(monkeypatch, capsys):
    monkeypatch.setattr("first_cpp.cli.run.columns", lambda _stream: 40)

    def answer():
        with AnswerPrinter() as shown:
            shown.add("one\x1b[2J two")
            raise ValueError("amid")

    with pytest.raises(ValueError, match="amid"):
        answer()
    assert capsys.readouterr().out == "one[2J two\n"  # and nothing that clears the terminal
