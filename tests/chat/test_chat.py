"""`first-cpp chat`: a pipe of messages, the commands, and a person at a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time

import pytest
from in_process import command
from routers_files import routed_model

from first_cpp.chat.reading import marked
from first_cpp.chat.session import Session
from first_cpp.chat.terminal import Terminal

COMMAND = [sys.executable, "-m", "first_cpp", "chat"]
LINE = r"\d tokens · [\d.]+ tokens/s · TTFT [\d.]+ s · 4 of 6 layers [#.]{6} · 1\.\d\dx expected over dense"


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=43)


@pytest.fixture
def arguments(routed):
    return ["-m", routed, "--skip", "0.34", "-n", "8", "--temp", "0", "-c", "2048", "--chat-format", "chatml"]


def chat(arguments, *lines, encoding="utf-8"):
    done = command("chat", *arguments, text="".join(f"{line}\n" for line in lines), encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # no terminal, no escapes
    return done.stdout + done.stderr


@pytest.fixture
def noted(monkeypatch):
    """The lines under answers, which a pipe does not get, on stdout all the same."""
    monkeypatch.setattr(Terminal, "note", lambda self, line: self.quiet(line(None)))


# -- through a pipe ------------------------------------------------------------------------------------------------


def test_turns_are_create_chat_completions(arguments, routed, load):
    done = subprocess.run([*COMMAND, *arguments], input="Hello\nAnd you?\n", capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert chat(arguments, "Hello", "And you?") == done.stdout  # as the other tests ask it
    llm = load(routed, skip=0.34, n_ctx=2048, chat_format="chatml")
    messages = []
    for text in ("Hello", "And you?"):
        messages.append({"role": "user", "content": text})
        answer = llm.create_chat_completion(messages, max_tokens=8, temperature=0)["choices"][0]["message"]
        messages.append(answer)
    answers = "".join(f"{message['content']}\n" for message in messages[1::2])
    assert done.stdout == re.sub("\r\n?", "\n", answers)  # nothing else


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_the_line_under_an_answer_is_for_a_terminal(arguments):
    """With stdout in a pipe it goes to stderr, where somebody looks at that; errors go there in any case."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    told = {"input": b"Hello\n/hlep\n", "stdout": subprocess.PIPE}
    seen = subprocess.run([*COMMAND, *arguments], stderr=theirs, env={**os.environ, "COLUMNS": "120"}, check=True, **told)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert len(re.findall(LINE, shown)) == 1
    assert "there is no command /hlep" in shown
    unseen = subprocess.run([*COMMAND, *arguments], stderr=subprocess.PIPE, check=True, **told)
    assert unseen.stdout == seen.stdout
    assert unseen.stderr == b"there is no command /hlep; /help lists the commands\n"


@pytest.mark.usefixtures("noted")
def test_empty_lines_and_load_without_a_name(arguments):
    out = chat(arguments, "", "/load", "Hello")
    assert "/load needs a file name" in out
    assert len(re.findall(LINE, out)) == 1


def test_many_lines_between_fences(arguments, tmp_path):
    saved = tmp_path / "talk.json"
    chat(arguments, '"""First', "second", 'third"""', f"/save {saved}")
    assert json.loads(saved.read_text())["messages"][0]["content"] == "First\nsecond\nthird"


def test_dial_and_layers(arguments):
    out = chat(arguments, "/layers", "/skip 0.5", "Hello", "/layers", "/skip 1,2", "/skip", "Again", "/layers", "/skip 7")
    assert "no prompt was read yet" in out
    assert "skip is 0.5" in out
    assert out.count("skipped\n") == 3
    assert "share 0.5 asks for 3 of 6 layers" in out
    assert "skip is 1,2" in out
    assert "#..###  no keep scores (fixed set)" in out
    assert "(1, 2)" not in out
    assert "7" in out.splitlines()[-1]


def test_system_reset_save_load(arguments, tmp_path):
    saved = tmp_path / "talk.json"
    out = chat(arguments, "/system Be brief.", "Hello", f"/save {saved}", "/reset", f"/save {saved}2", f"/load {saved}", "More")
    assert "3 messages saved" in out
    assert [m["role"] for m in json.loads(saved.read_text())["messages"]] == ["system", "user", "assistant"]
    assert [m["role"] for m in json.loads((tmp_path / "talk.json2").read_text())["messages"]] == ["system"]
    assert "3 messages read" in out
    assert sorted(os.listdir(tmp_path)) == ["talk.json", "talk.json2"]  # nothing half written is left
    assert "Hello" not in chat([*arguments, "--load", str(saved)], "/system", "/quit", "never read")


def test_compare_shows_both(arguments):
    out = chat(arguments, "/compare", "Hello", "/compare", "/skip")
    assert "nothing was asked yet" in out
    assert "dense" in out
    assert "6 of 6 layers" in out
    assert "4 of 6 layers" in out
    assert out.index("dense:") < out.index("6 of 6 layers") < out.index("skip 0.34:") < out.rindex("4 of 6 layers")
    assert "skip is 0.34" in out


def test_there_is_nothing_to_compare_where_nothing_is_skipped(arguments, tiny):
    out = chat(arguments, "/skip none", "Hello", "/compare", "/skip 0.34", "/compare")
    assert out.count("nothing to compare: skip none: nothing is skipped\n") == out.count("dense:") == 1
    plain = chat(["-m", tiny, "-n", "4", "-c", "256", "--temp", "0", "--chat-format", "chatml"], "Hello", "/compare")
    assert plain.endswith("\nnothing to compare: no routers: nothing is skipped\n")


def test_an_answer_without_a_token_is_said_and_takes_the_message_back(arguments, load, routed, monkeypatch, tmp_path):
    monkeypatch.setattr(Session, "_answer_to", lambda self, messages, **_: lambda: iter(()))
    saved = tmp_path / "talk.json"
    out = chat(arguments, "Hello", "/compare", f"/save {saved}")
    assert "the model ended its answer at once: this message is taken back\n" in out
    assert "nothing was asked yet" in out
    assert json.loads(saved.read_text())["messages"] == []


def test_compare_is_greedy_at_any_temperature(arguments, routed, load):
    out = chat([*arguments, "--temp", "1.5", "--seed", "3"], "Hello", "/compare")
    messages = [{"role": "user", "content": "Hello"}]
    llm = load(routed, n_ctx=2048, chat_format="chatml")
    for skip in (None, 0.34):
        greedy = llm.create_chat_completion(messages, max_tokens=8, temperature=0, skip=skip)["choices"][0]["message"]
        assert greedy["content"] in out


@pytest.mark.usefixtures("noted")
def test_set(arguments, tmp_path):
    saved = tmp_path / "talk.json"
    out = chat(
        arguments,
        *("/set", "/set temperature 0.2", "/set temp", "/set top-k 5", "/set stop END", "/set stop", "/set stop none"),
        *("/set max_tokens 3", "/set seed none", "/set temperature -1", "/set tmeperature 1", "/set top_p 2", "/set seed x"),
        *("/set temperature 0", "Hello", f"/save {saved}"),  # a random text may hold an escape
    )
    for line in ("temperature 0", "temperature 0.2", "top_k 5", "stop END", "stop none", "max_tokens 3", "seed none"):
        assert f"\n{line}\n" in f"\n{out}"
    assert out.count("temperature 0.2\n") == 2
    assert "/set temperature: -1 is not a number of 0 or more" in out
    assert "/set tmeperature: there is no such setting; did you mean temperature?" in out
    assert "/set top_p: 2 is not a number of 0 to 1" in out
    assert "/set seed: x is not a whole number" in out
    assert int(re.findall(r"^(\d+) tokens", out, re.MULTILINE)[0]) < 8  # the last may be cut in a character's middle


def test_set_is_what_answers_use(arguments, routed, load):
    out = chat([*arguments, "--temp", "1.5", "--seed", "3"], "/set temperature 0", "/set max_tokens 5", "Hello")
    llm = load(routed, skip=0.34, n_ctx=2048, chat_format="chatml")
    asked = [{"role": "user", "content": "Hello"}]
    assert llm.create_chat_completion(asked, max_tokens=5, temperature=0)["choices"][0]["message"]["content"] in out


def test_nothing_is_shown_in_pythons_words(arguments):
    out = chat(
        arguments,
        *("/skip none", "Hello", "/layers", "/skip auto", "/skip", "/skip 1,", "/skip 9", "/skip 2.5", "/skip 1,1", "/skip []"),
        *("/skip half", "/skip 0.95", "/skip 99,100", "/tolerance x", "/set", "/load nowhere", "/help"),
    )
    assert "/skip 9: a share of layers is at least 0 and below 1; for layer 9 alone write 9," in out
    assert "/skip 0.95: this would skip all 6 layers" in out
    assert "/skip half: allowed are auto, none, a share like 0.3" in out
    assert "/skip 99,100: layer 99 does not exist; this model has layers 0 to 5" in out
    assert "/tolerance x: a number of nats a token is needed" in out
    for mark in ("'", "None", "True", "[Errno", "skip=", "(1,", "float"):
        assert mark not in out.replace("last answer's", "").replace("model's", "").replace("token's", ""), mark


def test_a_share_without_routers_is_refused_in_the_chats_words(tiny):
    out = chat(["-m", tiny, "-c", "256"], "/skip 0.25")
    assert out == "/skip 0.25: a share needs routers, and this model has none; layers by number need none, like /skip 7,11\n"


def test_an_existing_file_is_not_replaced_where_nobody_can_be_asked(arguments, tmp_path):
    saved = tmp_path / "talk.json"
    saved.write_text("something else")
    out = chat(arguments, "Hello", f"/save {saved}", f"/save {saved}2")
    assert f"{saved} exists" in out
    assert "/save it under another name" in out
    assert saved.read_text() == "something else"
    assert "2 messages saved" in out


def test_a_pipe_gets_the_text_as_it_is(arguments):
    """No Markdown is drawn, no line wrapped; what the encoding has no sign for is replaced."""
    for encoding in ("utf-8", "cp1252", "ascii"):
        lines = ("/system **Be** `brief`.", "Hello", "/layers", "/help", "/compare", "/set")
        out = chat(arguments, *lines, encoding=encoding)
        assert "layers" in out
        assert re.search("[█#]{8}", out)


@pytest.mark.usefixtures("noted")
def test_help_and_mistakes(arguments, tmp_path):
    out = chat(arguments, "/help", "/hlep", "/save", f"/load {tmp_path}/none", "/skip x", "Hello")
    for words in (
        "/compare",
        "there is no command /hlep",
        "/save needs a file name",
        "No such file",
        "/skip x: allowed are auto, none, a share",
        "8 tokens",
    ):
        assert words in out


@pytest.mark.usefixtures("noted")
def test_a_question_too_long_is_taken_back(arguments):
    out = chat([*arguments, "-c", "256"], "word " * 400, "Hello")
    assert "no longer fits into the context of 256 tokens" in out
    assert "/reset" in out  # a way out
    assert " -c TOKENS" in out
    assert "8 tokens" in out


def test_bad_arguments_before_the_model_is_loaded(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text('{"messages": [{"role": "pope", "content": "x"}]}')
    done = command("chat", "-m", "nowhere.gguf", "--load", str(bad))
    assert done.returncode == 2
    assert "is not a saved conversation: message 0 has role 'pope'" in done.stderr


@pytest.mark.usefixtures("noted")
def test_fidelity_of_the_last_answer(arguments, routed, load):
    """A pipe runs no idle pass by itself; /fidelity runs it, and the next line under an answer has the figure too."""
    out = chat(arguments, "/fidelity", "Hello", "And you?", "/fidelity", "More")
    assert "no answer with skipped layers was measured" in out
    llm = load(routed, skip=0.34, n_ctx=2048, chat_format="chatml")
    messages = []
    for text in ("Hello", "And you?"):
        messages.append({"role": "user", "content": text})
        messages.append(llm.create_chat_completion(messages, max_tokens=8, temperature=0)["choices"][0]["message"])
    llm.catch_up()
    assert out.count(llm.fidelity.line()) == 2
    first, second, third = re.findall(LINE + ".*", out)
    assert "fidelity" not in first + second
    assert third.endswith(f" · before: {llm.fidelity.line()}")
    assert out.count("[") >= llm.fidelity.positions - llm.fidelity.equal


def test_marked_tokens(routed, load):
    llm = load(routed, skip=0.34, measure="choice")
    answer = llm.create_completion("Hello", max_tokens=12, temperature=0)["choices"][0]["text"]
    llm.catch_up()
    text = marked(llm)
    assert text.count("|") >= llm.fidelity.positions - llm.fidelity.equal > 0
    unmarked = re.sub(r"\[(.*?)\|.*?\]", r"\1", text, flags=re.DOTALL)
    assert unmarked.replace("\ufffd", "") == answer  # llama_cpp drops bytes that are no UTF-8


# -- at a terminal -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def terminal(arguments, tmp_path, *more):
    pexpect = pytest.importorskip("pexpect")
    environment = {**os.environ, "HOME": str(tmp_path), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "120"}
    environment.pop("XDG_STATE_HOME", None)
    words = [*COMMAND[1:], *arguments, *more]
    process = pexpect.spawn(COMMAND[0], words, env=environment, encoding="utf-8", timeout=30, dimensions=(40, 120))
    try:
        process.expect("Ctrl-D quits")
        yield process
    finally:
        process.close(force=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
class TestTerminal:
    def test_answers_and_leaves_on_ctrl_d(self, arguments, tmp_path):
        import pexpect

        with terminal(arguments, tmp_path) as process:
            process.send("Hello\r")
            process.expect("expected over dense")
            process.expect(">")
            time.sleep(0.5)  # the prompt takes the terminal over
            process.sendeof()
            process.expect(pexpect.EOF)
            process.wait()
            assert process.exitstatus == 0
        history = tmp_path / ".local" / "state" / "first_cpp" / "chat_history"
        assert "+Hello" in history.read_text()
        assert history.stat().st_mode & 0o077 == 0

    def test_it_reads_on_while_the_user_reads(self, arguments, tmp_path):
        with terminal(arguments, tmp_path) as process:
            process.send("Hello\r")
            process.expect("expected over dense")
            time.sleep(1)
            process.send("More\r")
            process.expect(r"before: fidelity \d\.\d\d: \d of 7 choices are the full model's")

    @pytest.mark.slow
    def test_it_reads_nothing_again_where_that_is_turned_off(self, arguments, tmp_path):
        with terminal(arguments, tmp_path, "--no-catch-up") as process:
            process.send("Hello\r")
            process.expect("expected over dense")
            time.sleep(1)
            process.send("More\r")
            process.expect("expected over dense")
            time.sleep(0.3)
            assert process.expect(["before: fidelity", ">"]) == 1

    @pytest.mark.timed
    def test_ctrl_c_keeps_what_was_said_and_twice_quits(self, arguments, tmp_path):
        import pexpect

        saved = tmp_path / "talk.json"
        long = [*arguments, "-n", "1900", "--temp", "0.9", "--seed", "0"]
        with terminal(long, tmp_path, "--no-history") as process:
            process.send("Hello\r")
            time.sleep(1.5)
            process.sendintr()
            process.expect("Ctrl-C again")
            process.send(f"/save {saved}\r")
            process.expect("2 messages saved")
            process.sendintr()
            process.expect("Ctrl-C again")
            for _ in range(5):  # amid the drawing of the prompt one may get lost
                process.sendintr()
                if process.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=3) == 0:
                    break
            else:
                pytest.fail("it did not quit")
            process.wait()
            assert process.exitstatus == 130
        said = json.loads(saved.read_text())["messages"][1]
        assert said["role"] == "assistant"
        assert said["content"]
        assert not (tmp_path / ".local").exists()

    def test_alt_enter_begins_a_new_line(self, arguments, tmp_path):
        saved = tmp_path / "talk.json"
        with terminal(arguments, tmp_path) as process:
            process.send("First\x1b\rsecond\r")
            process.expect("expected over dense")
            process.send(f"/save {saved}\r")
            process.expect("messages saved")
        assert json.loads(saved.read_text())["messages"][0]["content"] == "First\nsecond"
