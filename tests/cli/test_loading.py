"""A signal while a model is loaded, a template that cannot be compiled, a model without one, a context beyond all sense."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from helpers import survives
from in_process import command
from raw_gguf import with_metadata
from routers_files import routed_model
from server import chat, error_of, serving

from first_cpp import Llama
from first_cpp.cli.main import main
from first_cpp.cli.model_options import ModelOptions

BROKEN = "{% if messages %}{{ messages }"
SIGNAL_WHILE_LOADING = """
    import os, signal, sys
    from first_cpp import Llama
    sent = []
    def on_load_progress(self, share):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.{signal}))
    Llama.on_load_progress = on_load_progress
"""


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=81)


@pytest.fixture(scope="module")
def broken(tiny, models):
    return with_metadata(tiny, models / "broken-template.gguf", tokenizer__chat_template=BROKEN)


@pytest.fixture(scope="module")
def bare(tiny, models):
    """Without a chat template."""
    return with_metadata(tiny, models / "no-template.gguf", tokenizer__chat_template=None)


# -- signals -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_while_the_library_loads(tiny):
    done = survives(
        SIGNAL_WHILE_LOADING.replace("{signal}", "SIGINT")
        + f"""
    try:
        Llama({tiny!r}, verbose=False)
    except KeyboardInterrupt:
        print("interrupted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print(Llama({tiny!r}, verbose=False)("Once", max_tokens=2)["usage"]["completion_tokens"])
    """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\n2\n", "", 0)


@pytest.mark.parametrize("verb", [["run", "--raw", "Once"], ["chat"], ["serve", "--port", "0"]], ids=lambda verb: verb[0])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_a_verb_loads(tiny, verb, name, code):
    done = survives(
        SIGNAL_WHILE_LOADING.replace("{signal}", name)
        + f"""
    from first_cpp.cli.main import main
    sys.exit(main({[verb[0], "-m", tiny, *verb[1:]]!r}))
    """
    )
    assert (done.returncode, done.stderr) == (code, "")


def test_other_threads_load_without_touching_signals(tiny):
    done = survives(f"""
        import signal, threading
        from first_cpp import Llama
        thread = threading.Thread(target=lambda: print(Llama({tiny!r}, verbose=False).n_layer_() if 0 else "loaded"))
        thread.start(); thread.join()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    """)
    assert done.stdout == "loaded\n"


# -- templates ---------------------------------------------------------------------------------------------------------


def test_a_broken_template_is_named_when_it_is_needed(broken, load):
    llm = load(broken)
    assert llm.metadata["tokenizer.chat_template"]
    assert llm.create_completion("Once", max_tokens=2)["usage"]["completion_tokens"] > 0
    with pytest.raises(ValueError, match="the chat template of this model cannot be compiled"):
        llm.create_chat_completion([{"role": "user", "content": "x"}])
    with_format = load(broken, chat_format="chatml")
    assert with_format.create_chat_completion([{"role": "user", "content": "x"}], max_tokens=2)["choices"]


def test_a_broken_template_in_every_verb(broken, capsys, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["run", "-m", broken, "--raw", "-n", "2", "-c", "256", "Once"]) == 0
    assert main(["run", "-m", broken, "--chat-format", "chatml", "-n", "2", "-c", "256", "Once"]) == 0
    assert main(["run", "-m", broken, "-n", "2", "-c", "256", "Once"]) == 1
    assert "cannot be compiled" in capsys.readouterr().err
    assert main(["inspect", "--check", broken]) == 0
    with serving(broken, "-c", 256) as server:
        refused = server.http.post("/v1/chat/completions", json=chat())
        assert refused.status_code == 400
        assert "cannot be compiled" in error_of(refused)["message"]
        assert server.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200


def test_a_model_without_a_template_goes_on_with_the_text(bare, load):
    """Under Llama 2's format, which llama_cpp takes for it, models that never saw it end at once."""
    asked = ["-m", bare, "-n", "6", "--temp", "0", "-c", "256"]
    chatted, raw = command("run", *asked, "Once upon"), command("run", *asked, "--raw", "Once upon")
    assert chatted.stdout == raw.stdout
    assert chatted.stderr.count("has no chat template") == 1
    assert raw.stderr == ""
    llm = ModelOptions(bare, ctx=256).load()
    expected = llm.create_completion("Once upon", max_tokens=6, temperature=0)["choices"][0]["text"]
    llm.close()
    with serving(bare, "-c", 256) as server:
        body = {"messages": [{"role": "user", "content": "Once upon"}], "max_tokens": 6, "temperature": 0, "repeat_penalty": 1}
        for _ in range(2):
            answer = server.http.post("/v1/chat/completions", json=body).json()
            assert answer["choices"][0]["message"]["content"] == expected


def test_chat_without_a_template_warns_once(bare):
    done = command("chat", "-m", bare, "-n", "4", "-c", "256", text="One\nTwo\n")
    assert done.returncode == 0
    assert done.stderr.count("has no chat template") == 1


def test_the_plugin_without_a_template(bare, load, capsys):
    pytest.importorskip("llm")
    from first_cpp.llm_plugin import FirstCppModel

    llama = load(bare)
    expected = llama.create_completion("Once upon", max_tokens=6, temperature=0, repeat_penalty=1.1)["choices"][0]["text"]
    model = FirstCppModel("mine", llama)
    texts = {model.prompt("Once upon", max_tokens=6, temperature=0).text() for _ in range(2)}
    assert "".join(texts).encode("ascii", "ignore") == expected.encode("ascii", "ignore")
    assert capsys.readouterr().err.count("has no chat template") == 1


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.timed
@pytest.mark.parametrize("verb", [["run", "x"], ["chat"], ["serve"]], ids=lambda verb: verb[0])
def test_a_context_beyond_all_sense_is_refused_at_once(tiny, verb):
    began = time.monotonic()
    done = command(verb[0], "-m", tiny, "-c", "999999999", *verb[1:])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "-c 999999999: the model was trained for 2048 tokens" in done.stderr
    assert time.monotonic() - began < 10


def test_a_port_beyond_65535():
    done = command("serve", "--port", "65536")
    assert done.returncode == 2
    assert "65536 is above 65535" in done.stderr


def test_loading_is_shown_on_a_terminal(routed):
    pexpect = pytest.importorskip("pexpect")
    code = (
        "import first_cpp.cli.model_options as o, sys; o._LARGE = 0; from first_cpp.cli.main import main; "
        f"sys.exit(main(['run', '-m', {routed!r}, '--raw', '-n', '2', '-c', '256', 'Once']))"
    )
    process = pexpect.spawn(sys.executable, ["-c", code], encoding="utf-8", timeout=60)
    process.expect("loading routed-81.gguf")
    process.close(force=True)


def test_a_saved_conversation_is_a_regular_file(routed, tmp_path):
    import os

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    text = f"/save {fifo}\n/save /dev/null\n/save {tmp_path}\n/save {tmp_path}/fine.json\n"
    done = command("chat", "-m", routed, "-c", "256", "--chat-format", "chatml", text=text)
    assert done.returncode == 0
    assert done.stdout.count("messages saved") == 1
    assert fifo.is_fifo()
    assert not os.path.isfile("/dev/null")
    assert json.loads((tmp_path / "fine.json").read_text()) == {"messages": []}


@pytest.mark.slow
def test_the_seed_of_the_plugin_differs_from_process_to_process(routed):
    pytest.importorskip("llm")
    code = f"""
from first_cpp.llm_plugin import FirstCppModel
response = FirstCppModel("mine", {routed!r}).prompt("Once", max_tokens=12, temperature=1.5)
print(ascii(response.text()), response.usage().input, response.usage().output)
"""
    found = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert found[0] != found[1]
    assert int(found[0].split()[-2]) > 0
    assert Llama
