"""What a person sees of `first-cpp chat`, at terminals of 60, 80 and 100 columns."""

from __future__ import annotations

import asyncio
import io
import json
import pathlib
import re
import signal
import sys
import time
import warnings

import pytest
from rich.console import Console
from routers_files import routed_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
pytest.importorskip("pexpect")
pyte = pytest.importorskip("pyte")

from screen import Screen  # noqa: E402

from first_cpp.chat import answer_view  # noqa: E402
from first_cpp.chat.answer_view import AnswerView, markdown  # noqa: E402
from first_cpp.chat.line_reader import PromptReader  # noqa: E402

SCRIPTED = str(pathlib.Path(__file__).parents[1] / "support" / "scripted_chat.py")
SLOW = pytest.mark.slow  # each begins a process and types as a person does
READERS = pytest.mark.parametrize("without", ["", pytest.param("prompt_toolkit", marks=SLOW)])
PROSE = (
    "The lighthouse on the point was built in eighteen forty-six, after two ships were lost in a single winter, and the lamp "
    "that it carried burned whale oil, then paraffin, and in the end electricity, which nobody had to bring up the stairs."
)
MARKDOWN = f"""# Adding two numbers

{PROSE}

- **first** point, with a sentence that is long enough to be wrapped at the edge of any terminal that people use today
- second point with `code` and <b>no HTML</b>

```python
def add(a, b):
    return a + b
```

One line
and another."""


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=47)


@pytest.fixture
def chat(routed, tmp_path):
    """Begins a chat whose answers are `script`."""
    opened = []

    def begin(script=PROSE, width=80, height=30, options=(), **environment):
        words = [sys.executable, SCRIPTED, "chat", "-m", routed, "--skip", "0.34", "-n", "8", "--temp", "0", "-c", "2048"]
        words += ["--chat-format", "chatml", "-t", "1", *options]
        names = {"SCRIPT": script, "HOME": str(tmp_path), **environment}
        opened.append(Screen(words, width, height, **names))
        opened[-1].wait("Ctrl-D quits")
        opened[-1].settle(0.2)
        return opened[-1]

    yield begin
    for screen in opened:
        screen.close()


def answer_on(screen):
    """What stands between the first message and the line under its answer."""
    return re.split(r"\n\d+ tokens", screen.text.partition("> Hello")[2])[0]


def words_of(text):
    return re.findall(r"[\w'-]+", text)


# -- what fits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, pytest.param(60, marks=SLOW), pytest.param(100, marks=SLOW)])
def test_words_wrap_at_the_edge_also_while_they_come(chat, width):
    screen = chat(width=width, PAUSE="0.03")
    screen.send("Hello\r")
    whole = set(words_of(PROSE))
    seen = 0
    while "tokens/s" not in screen.text:
        screen.read(0.1)
        shown = answer_on(screen)
        if "reading" in shown or not shown.strip():
            continue
        seen += 1
        if not set(words_of(shown)) <= whole:  # half a frame may have come
            screen.read(0.1)
            assert set(words_of(answer_on(screen))) <= whole, answer_on(screen)  # no word is cut in two
    assert seen > 5
    assert " ".join(words_of(PROSE)) in " ".join(words_of(screen.text))
    assert len(screen.raw) > 0
    assert max(map(len, screen.lines)) <= width


def test_header_status_line_and_help_fit_80_columns(chat):
    screen = chat()
    screen.send("Hello\r")
    screen.wait("tokens/s")
    screen.send("/help\r")
    screen.wait("Ctrl-C  ")
    lines = screen.lines
    assert lines[0].endswith("skip 0.34")
    assert re.match("/help lists the commands", lines[1])
    (status,) = (line for line in lines if "tokens/s" in line)
    assert re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s · TTFT [\d.]+ s · 4 of 6 layers.* · 1.\d\dx expected.*", status)
    for name in (
        "/skip",
        "/tolerance",
        "/set temperature",
        "/layers",
        "/compare",
        "/fidelity",
        "/save",
        "/load",
        "/quit",
        "Tab",
    ):
        (line,) = (line for line in lines if line.startswith(f"{name} "))
        assert not line.endswith(" ")
    text = re.sub(r"\s+", " ", screen.text)  # nothing was cut off
    assert "as temperature 0.2; without: show them" in text
    assert "/set seed none (for the same answer again; none: another one each time)" in text


def test_markdown_is_drawn(chat):
    screen = chat(MARKDOWN)
    screen.send("Hello\r")
    screen.wait("tokens/s")
    shown = answer_on(screen)
    for mark in ("**", "```", "# ", "`code`"):
        assert mark not in shown
    assert "• first point" in shown
    assert "<b>no HTML</b>" in shown  # HTML is text
    assert re.search(r"^ *def add\(a, b\):\s*$", shown, re.MULTILINE)
    assert re.search(r"^One line$\n^and another\.$", shown, re.MULTILINE)  # a new line is a new line
    assert shown.count("Adding two numbers") == shown.count("def add") == 1  # drawn again, not twice
    assert words_of(shown) == [word for word in words_of(MARKDOWN) if word not in ("python", "-")]


@pytest.mark.parametrize("script", ["```def add two numbers", "```def add two numbers\nreturn 1\n```", "```\n```\nand on"])
def test_nothing_of_a_broken_fence_is_lost(script):
    console = Console(width=60, file=io.StringIO())
    console.print(markdown(script))
    assert words_of(console.file.getvalue()) == words_of(script)


@SLOW
def test_an_answer_longer_than_the_screen_stands_there_whole(chat):
    script = "```\n" + "".join(f"line {number}\n" for number in range(60)) + "```\n"
    screen = chat(script, height=20, PAUSE="0.01")
    screen.send("Hello\r")
    screen.wait("tokens/s")
    assert re.findall(r"line (\d+)", screen.text) == [str(number) for number in range(60)]


def test_escape_sequences_of_an_answer_are_not_obeyed():
    console = Console(width=60, file=io.StringIO(), force_terminal=True)
    with AnswerView(console, lambda: None) as view:
        view.add("before \x1b[2J\x1b]0;title\x07\x9b31m")
        view.add(" after\n\n\x1b[2J")
    shown = console.file.getvalue()
    assert "before [2J]0;title31m after" in shown
    assert not re.search("\x1b\\[2J|\x1b\\]|\x07|\x9b", shown)


def test_no_line_is_lost_however_often_it_is_drawn(monkeypatch):
    monkeypatch.setattr(answer_view, "_FRAMES", 2000)
    for _ in range(8):
        console = Console(width=60, height=30, file=io.StringIO(), force_terminal=True)
        with AnswerView(console, lambda: None) as view:
            for number in range(12):
                view.add(f"line {number} of a paragraph that goes on for a while and wraps at the edge\n")
                time.sleep(0.001)
                view.add("\n- a\n- b\n\n")
        emulator = pyte.HistoryScreen(60, 30, history=1000, ratio=0.01)
        pyte.Stream(emulator).feed(console.file.getvalue().replace("\n", "\r\n"))
        above = ["".join(line[column].data for column in range(60)) for line in emulator.history.top]
        shown = "\n".join([*above, *emulator.display])
        assert re.findall(r"line (\d+) of", shown) == [str(number) for number in range(12)]
        assert shown.count("• a") == shown.count("• b") == 12


def test_how_far_the_prompt_was_read(chat):
    screen = chat(WAIT="0.9")
    screen.send("Hello\r")
    screen.wait("reading the prompt: 512 of 2,048 tokens")
    frames = set()
    for _ in range(5):
        screen.read(0.1)
        frames |= {line[0] for line in screen.lines if "reading the prompt" in line}
    assert len(frames) > 1  # it turns
    screen.wait("tokens/s")
    assert "reading the prompt" not in screen.text


# -- what is typed -------------------------------------------------------------------------------------------------------


@READERS
def test_keys_typed_during_an_answer_are_kept_for_the_next_prompt(chat, without):
    screen = chat(PAUSE="0.02", WITHOUT=without)
    screen.send("Hello\r")
    screen.wait("The lighthouse")
    screen.send("typed meanwhixx\x7f\x7fle")
    time.sleep(0.3)
    screen.read()
    assert "typed" not in screen.text  # not amid the answer
    screen.wait("tokens/s")
    screen.wait("> typed meanwhile")
    screen.send(" and after\r")
    screen.wait("tokens/s", after=1)
    assert "> typed meanwhile and after" in screen.text
    answer = re.sub(r"\s+", " ", screen.text)
    assert answer.count(PROSE) == 2


def test_keys_are_kept_when_the_answer_is_stopped(chat):
    screen = chat(PAUSE="0.1")
    screen.send("Hello\r")
    screen.wait("The lighthouse")
    screen.send("next question")
    screen.process.sendintr()
    screen.wait("Ctrl-C again")
    screen.wait("> next question")


def test_the_terminal_is_as_before_in_the_end(chat):
    import termios

    screen = chat()
    screen.send("Hello\r")
    screen.wait("tokens/s")
    screen.settle()
    screen.send("\x04")
    assert screen.end() == 0
    assert termios.tcgetattr(screen.process.child_fd)[3] & termios.ECHO


@READERS
def test_tab_completes(chat, tmp_path, without):
    screen = chat(WITHOUT=without)
    screen.send("/tol\t\r")
    screen.wait("no tolerance|tolerance is")
    screen.send("/set temp\t 0.2\r")
    screen.wait("temperature 0.2\ntemperature 0.2")  # as it was typed, and as it holds
    screen.send("/set to\tk 7\r")  # what top_k and top_p have in common
    screen.wait("\ntop_k 7")
    screen.send("/skip no\t\r")
    screen.wait("skip is none")
    (tmp_path / "conversation.json").write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}))
    screen.send(f"/load {tmp_path}/conv\t\r")
    screen.wait("1 message read")


def test_save_asks_before_it_overwrites(chat, tmp_path):
    saved = tmp_path / "talk.json"
    saved.write_text("something else")
    screen = chat(width=200)
    screen.send("Hello\r")
    screen.wait("tokens/s")
    screen.send(f"/save {saved}\r")
    screen.wait(r"exists: replace it\? \[y/N\]")
    screen.send("\r")
    screen.wait("not saved")
    assert saved.read_text() == "something else"
    screen.send(f"/save {saved}\r")
    screen.wait(r"exists: replace it\? \[y/N\]", after=1)
    screen.send("y\r")
    screen.wait("2 messages saved")
    assert json.loads(saved.read_text())["messages"][0]["content"] == "Hello"
    screen.send("\x1b[A\x1b[A")  # the answers are no part of the history
    screen.wait("> /save")


@READERS
def test_ctrl_c_twice_quits(chat, without):
    screen = chat(WITHOUT=without)
    screen.process.sendintr()
    screen.wait("Ctrl-C again")
    screen.settle()
    screen.process.sendintr()
    assert screen.end() == 130


# -- two answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, pytest.param(60, marks=SLOW), pytest.param(100, marks=SLOW)])
def test_compare_streams_side_by_side_where_there_is_room(chat, width):
    screen = chat(width=width, PAUSE="0.01", height=40)
    screen.send("Hello\r")
    screen.wait("tokens/s")
    screen.send("/compare\r")
    screen.wait("dense")
    screen.wait("The lighthouse", after=1)
    assert "6 of 6 layers" not in screen.text  # it is shown while it comes
    screen.wait("expected over dense|expected", after=1)
    screen.settle()
    lines = screen.lines[next(number for number, line in enumerate(screen.lines) if "/compare" in line) :]
    beside = [line for line in lines if re.search("dense.*skip 0.34", line)]
    assert len(beside) == (width >= 72)
    assert sum("6 of 6 layers" in line for line in lines) == sum("4 of 6 layers" in line for line in lines) == 1
    assert max(map(len, lines)) <= width


# -- other terminals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=SLOW)])
def test_encodings_without_the_signs(chat, encoding):
    screen = chat(MARKDOWN + "\n\n> quoted \u2014 caf\u00e9\n", PYTHONIOENCODING=encoding, PYTHONUTF8="0", WAIT="0.3")
    screen.send("Hello\r")
    screen.wait("tokens/s")
    screen.send("/layers\r")
    screen.settle()
    screen.send("/compare\r")
    screen.wait("tokens/s", after=2)
    assert "return a + b" in screen.text
    assert "Traceback" not in screen.text
    if encoding == "ascii":
        assert "* first point" in screen.text
        assert "########" in screen.text


@SLOW
def test_a_dumb_terminal_gets_plain_text(chat):
    screen = chat("**bold** and `code`", TERM="dumb")
    screen.send("Hello\r")
    screen.wait("tokens/s")
    assert "**bold** and `code`" in screen.text


@pytest.mark.skipif(sys.platform == "win32", reason="sends itself a signal")
@pytest.mark.parametrize("when", ["before the loop", "in the loop"])
def test_ctrl_c_while_the_prompt_is_set_up_is_not_lost(monkeypatch, when):
    """asyncio would raise it amid its own work, cancel the prompt, or say what it ignored."""
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    real = asyncio.events.new_event_loop

    def interrupted():
        if when == "before the loop":
            signal.raise_signal(signal.SIGINT)
        loop = real()
        if when == "in the loop":
            loop.call_soon(signal.raise_signal, signal.SIGINT)
        return loop

    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()), warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = PromptReader(history=False, completions=lambda _line: [])
        with monkeypatch.context() as patched:
            patched.setattr("asyncio.runners.events.new_event_loop", interrupted)
            with pytest.raises(KeyboardInterrupt):
                reader.line("> ")
        typed.send_text("hello\r")
        assert reader.line("> ") == "hello"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
