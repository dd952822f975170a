"""first_cpp.Llama as a llama_cpp.Llama: the same answers without routing, and errors instead of crashes."""

from __future__ import annotations

import copy
import itertools
import os
import pathlib
import pickle
import threading
import time

import llama_cpp
import numpy as np
import pytest
from helpers import greedy, logits, run_tokens, survives, tokens
from routers_files import routed_model

import first_cpp
from first_cpp import ClosedError, Llama, ModelFileError, RoutingError, SkipError
from first_cpp.skip import parse_skip

PROMPT = tokens(40, seed=3)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=21)


# -- the base class's behaviour ------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [None, 0, 0.0, [], "auto"], ids=str)
@pytest.mark.parametrize("draft", [False, True], ids=["plain", "draft"])
def test_without_routing_the_output_is_the_bases(tiny, load, skip, draft):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    answers = []
    for cls, own in ((llama_cpp.Llama, {}), (Llama, {"skip": skip})):
        kwargs = {"draft_model": LlamaPromptLookupDecoding(num_pred_tokens=3)} if draft else {}
        llm = load(tiny, cls, **own, **kwargs)
        turns = [llm.create_completion("Once upon", max_tokens=30, temperature=t, seed=7)["choices"] for t in (0, 0.8)]
        turns += [llm.create_completion("Once upon a time", max_tokens=20, temperature=0)["choices"]]
        answers.append((turns, greedy(llm, PROMPT, 20), llm.n_tokens))
    assert answers[0] == answers[1]


def test_logits_without_routing_are_the_bases(tiny, load):
    expected = run_tokens(load(tiny, llama_cpp.Llama), PROMPT, PROMPT[:8])
    np.testing.assert_array_equal(run_tokens(load(tiny, skip=None), PROMPT, PROMPT[:8]), expected)


def test_chat_streams_what_it_answers(routed, load):
    llm = load(routed, skip=0.34, chat_format="chatml")
    ask = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 24, "temperature": 0}
    whole = llm.create_chat_completion(**ask)["choices"][0]["message"]["content"]
    chunks = [c["choices"][0]["delta"].get("content") or "" for c in llm.create_chat_completion(**ask, stream=True)]
    assert "".join(chunks) == whole
    assert len(llm.routing.skipped) == 2


def test_draft_model_gives_the_same_tokens(routed, load):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    prompt = tokens(12, seed=1) * 4
    plain = greedy(load(routed, skip=0.34), prompt, 30)
    drafted = load(routed, skip=0.34, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=3))
    assert greedy(drafted, prompt, 30) == plain


def test_a_draft_model_cannot_come_later(tiny, load):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    llm = load(tiny)
    with pytest.raises(ValueError, match="to the constructor"):
        llm.draft_model = LlamaPromptLookupDecoding()  # llama.cpp would abort the process
    llm.draft_model = None
    assert greedy(llm, PROMPT, 4) == greedy(load(tiny), PROMPT, 4)
    with_all = load(tiny, logits_all=True)
    with_all.draft_model = LlamaPromptLookupDecoding(num_pred_tokens=3)
    assert greedy(with_all, PROMPT, 4) == greedy(llm, PROMPT, 4)


def test_prompt_whose_last_micro_batch_is_one_token_is_prefill(routed, load):
    """Phases, not batch sizes: 41 tokens in micro-batches of 8 end with one token, which runs all layers."""
    prompt = tokens(41, seed=2)
    llm, dense = load(routed, skip=[1, 2], n_ubatch=8, n_batch=8), load(routed, skip=None, n_ubatch=8, n_batch=8)
    next(llm.generate(prompt, temp=0.0))
    dense.eval(prompt)
    np.testing.assert_array_equal(logits(llm), logits(dense))
    assert llm._layers._hook.layers_skipped == 0


def test_layers_left_out_are_counted(routed, load):
    llm = load(routed, skip=[1, 2, 5])
    greedy(llm, PROMPT, 11)
    assert llm._layers._hook.layers_skipped == 10 * 3  # ten decoding steps after the prompt's own token


def test_embeddings_are_the_bases(routed, load):
    texts = ["one text", "and another"]
    expected = load(routed, llama_cpp.Llama, embedding=True, pooling_type=1).embed(texts)
    assert load(routed, embedding=True, pooling_type=1).embed(texts) == expected


def test_pickle_keeps_the_settings(routed, load, tmp_path):
    side = routed_model(routed_base(routed), tmp_path, seed=4, sidecar=True)
    llm = load(routed_base(routed), routers=side, skip=[1, 3], release_kv=True)
    again = pickle.loads(pickle.dumps(llm))
    try:
        assert (again.skip, again._arguments.routers, again._arguments.release_kv) == ((1, 3), side, True)
        assert greedy(again, PROMPT, 8) == greedy(llm, PROMPT, 8)
    finally:
        again.close()


def routed_base(routed):
    return str(pathlib.Path(routed).parent / "tiny.gguf")


# -- settings ------------------------------------------------------------------------------------------------------


def test_settings_and_what_they_decide(routed, load):
    llm = load(routed)
    assert llm.routing is None
    greedy(llm, PROMPT, 2)
    assert len(llm.routing.skipped) == 2  # the file recommends 0.34 of 6
    assert llm.routing.share == pytest.approx(2 / 6)
    order = np.argsort(llm.routing.keep)
    for share, count in ((0.1, 1), (0.5, 3), (0.8, 5), (0.05, 0)):
        llm.skip = share
        greedy(llm, PROMPT, 2)
        assert llm.routing.skipped == tuple(sorted(order[:count].tolist()))
    llm.skip = (4, 2)
    greedy(llm, PROMPT, 2)
    assert (llm.routing.skipped, llm.routing.keep, llm.routing.why) == ((2, 4), None, "fixed set")
    llm.skip = None
    greedy(llm, PROMPT, 2)
    assert llm.routing.skipped == ()


def test_layers_the_file_marks_unskippable_stay(tiny, tmp_path, load):
    path = routed_model(tiny, tmp_path, skippable="[false, false, false, true, true, false]")
    llm = load(path, skip=0.8)
    greedy(llm, PROMPT, 2)
    assert llm.routing.skipped == (3, 4)
    assert "only 2 are skippable" in llm.routing.why
    llm.skip = [0, 3]
    greedy(llm, PROMPT, 2)
    assert llm.routing.skipped == (3,)
    assert "[0] stay" in llm.routing.why


@pytest.mark.parametrize(
    "skip",
    [-0.1, 1, 1.0, 1.5, float("nan"), float("inf"), "0.3", True, False, [7.5], [0, 0], [-1], [True], ["1"], b"a", {}.items],
)
def test_bad_skip_is_refused_before_the_file_is_read(skip):
    with pytest.raises(SkipError, match="skip"):
        Llama("no-such-file.gguf", skip=skip, verbose=False)


LONG = {"one": [0] * 20_000, "many": list(range(20_000)), "range": range(10**12), "endless": itertools.count()}


@pytest.mark.parametrize("skip", LONG.values(), ids=LONG)
def test_a_long_list_of_layers_is_a_quick_error(skip):
    began = time.perf_counter()
    with pytest.raises(SkipError, match="more than 4096 entries"):
        Llama("no-such-file.gguf", skip=skip, verbose=False)
    parse_skip(range(4096))
    assert time.perf_counter() - began < 0.1


@pytest.mark.parametrize(("skip", "hint"), [(7, "skip=[7]"), (1.0, "skip=[1]"), (1.5, ""), (-1, ""), (float("inf"), "")])
def test_a_number_that_is_no_share_may_be_a_layer(skip, hint):
    with pytest.raises(SkipError) as told:
        Llama("no-such-file.gguf", skip=skip, verbose=False)
    assert str(told.value).partition("alone write ")[2] == hint


@pytest.mark.parametrize(("skip", "said"), [([6], "0 to 5"), (range(6), "all 6"), (0.95, "all 6 layers")])
def test_skip_that_does_not_fit_the_model(routed, load, skip, said):
    with pytest.raises(SkipError, match=said):
        load(routed, skip=skip)
    llm = load(routed)
    with pytest.raises(SkipError, match=said):
        llm.skip = skip
    assert llm.skip == "auto"


def test_share_without_routers_is_refused(tiny, load):
    with pytest.raises(SkipError, match="routers"):
        load(tiny, skip=0.25)
    llm = load(tiny)
    with pytest.raises(SkipError, match="routers"):
        llm.skip = 0.25
    assert llm.routers is None
    greedy(llm, PROMPT, 2)
    assert llm.routing.skipped == ()


@pytest.mark.parametrize(("given", "meant"), [("n_gpu_layer", "n_gpu_layers"), ("skp", "skip"), ("router", "routers")])
def test_unknown_keyword_names_the_nearest(tiny, given, meant):
    with pytest.raises(TypeError, match=f"{given}.*did you mean '{meant}'"):
        Llama(tiny, **{given: 1})


def test_gpu_layers_with_routing_are_refused(routed, load, monkeypatch):
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    with pytest.raises(first_cpp.OffloadError, match=r"n_gpu_layers=-1.*CPU only"):
        Llama(routed, n_gpu_layers=-1, verbose=False)
    llm = load(routed, n_gpu_layers=1, skip=None)
    with pytest.raises(first_cpp.OffloadError, match="CPU only"):
        llm.skip = 0.25
    with pytest.raises(first_cpp.OffloadError, match="CPU only"), llm.skipping([1]):
        pass


def test_model_whose_graph_does_not_fit_runs_dense_and_says_so(routed, load):
    dense = greedy(load(routed, skip=None), PROMPT, 8)
    llm = load(routed)
    llm._layers.declare_dense(6, "its layers have no names")
    with pytest.warns(RuntimeWarning, match="runs dense: its layers have no names"):
        llm.skip = 0.5
    assert greedy(llm, PROMPT, 8) == dense
    assert (llm.routing.skipped, llm.routing.why) == ((), "dense: its layers have no names")


def test_strict_makes_that_an_error(routed, tiny, load, monkeypatch):
    load(tiny, strict=True).skip = None  # nothing asked, nothing refused
    monkeypatch.setattr(first_cpp.llama, "learn_layout", lambda llm, layers, *rest: layers.declare_dense(6, "no names"))
    for skip in (0.25, [1], "auto"):
        with pytest.raises(first_cpp.RoutingError, match=r"no layer of .* can be skipped: no names; strict=False"):
            load(routed, skip=skip, strict=True)
    llm = load(routed, skip=None, strict=True)
    assert llm.dense_because == "no names"
    assert llm.unskippable == ("no names",) * 6
    with pytest.raises(first_cpp.RoutingError, match="no names"), llm.skipping([1]):
        pass


def test_after_a_graph_that_could_not_be_patched_the_next_answer_is_right(routed, load, monkeypatch):
    llm = load(routed, skip=[2])

    def check():
        raise RoutingError("layer 2 cannot be skipped in this graph: made up")

    monkeypatch.setattr(llm._layers, "check", check)
    with pytest.raises(RoutingError, match="made up"):
        greedy(llm, PROMPT, 8)
    monkeypatch.undo()
    assert greedy(llm, PROMPT, 8) == greedy(load(routed, skip=[2]), PROMPT, 8)


# -- one llama.cpp -------------------------------------------------------------------------------------------------


def test_exactly_one_libllama_is_mapped(tiny):
    done = survives(f"""
        from first_cpp import Llama
        Llama({tiny!r}, verbose=False)("hello", max_tokens=2)
        maps = [line.split()[-1] for line in open("/proc/self/maps") if ".so" in line]
        for name in ("libllama", "libggml-base", "libggml-cpu"):
            print(name, len({{m for m in maps if m.rsplit("/", 1)[-1].startswith(name + ".so")}}))
    """)
    assert done.stdout.split("\n")[:3] == ["libllama 1", "libggml-base 1", "libggml-cpu 1"], done.stderr


def test_wrong_import_order_fails_loudly():
    done = survives("""
        import importlib.machinery, importlib.util, pathlib
        found = importlib.util.find_spec("first_cpp")
        for folder in [*found.submodule_search_locations, *__import__("site").getsitepackages()]:
            for path in [*pathlib.Path(folder).glob("_ext*.so"), *pathlib.Path(folder).glob("first_cpp/_ext*.so")]:
                loader = importlib.machinery.ExtensionFileLoader("_ext", str(path))
                importlib.util.module_from_spec(importlib.util.spec_from_file_location("_ext", path, loader=loader))
                print("loaded without llama_cpp")
    """)
    assert done.returncode == 1
    assert "libggml-base" in done.stderr


def test_another_ggml_is_refused(monkeypatch):
    from first_cpp import _ext
    from first_cpp._version import check_versions

    monkeypatch.setattr(llama_cpp, "__version__", "0.3.35")
    with pytest.raises(ImportError, match=r"0\.3\.36.*0\.3\.35"):
        check_versions()
    monkeypatch.undo()
    monkeypatch.setattr(_ext, "built_with_ggml", "0.24.0")
    with pytest.raises(ImportError, match=r"ggml 0\.24\.0"):
        check_versions()


def test_two_models_in_two_threads(routed, tiny, load):
    """One hook a context: two models answer at the same time as they do alone."""
    llms = [load(routed, skip=[1, 2]), load(tiny, skip=[5]), load(routed, skip=0.5)]
    alone = [greedy(llm, PROMPT, 40) for llm in llms]
    found = [None] * 3

    def work(i):
        llms[i].reset()
        found[i] = greedy(llms[i], PROMPT, 40)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == alone


def test_copying_is_not_sharing(routed, load):
    llm = load(routed, skip=[1])
    again = copy.copy(llm)
    assert again._ctx.ctx != llm._ctx.ctx
    again.close()
    assert greedy(llm, PROMPT, 3)


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


# -- text of tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [False, True])
def test_every_token_has_the_bases_text(smollm2, tiny, load, special):
    for path in (smollm2, tiny):
        base, ours = load(path, llama_cpp.Llama), load(path)
        for token in range(base.n_vocab()):
            expected = base.detokenize([token], special=special)
            assert ours.detokenize([token], special=special) == expected or len(ours.detokenize([token])) > 32


def test_a_text_is_its_tokens_text(smollm2, tiny, load):
    for path in (smollm2, tiny):
        base, ours = load(path, llama_cpp.Llama), load(path)
        for first in ([], [base.token_bos()]):
            found = first + base.tokenize(" Grüße, 世界! <|im_end|> text".encode(), add_bos=False, special=True)
            for special in (False, True):
                assert ours.detokenize(found, special=special) == base.detokenize(found, special=special)
        assert ours.detokenize([]) == b""


@pytest.mark.parametrize("token", [-1, 320, 10**9])
def test_numbers_that_are_no_token(tiny, load, token):
    with pytest.raises(ValueError, match="no token of this model: 0 to 319"):
        load(tiny).detokenize([5, token])


def test_a_closed_model_has_no_text(tiny, load):
    llm = load(tiny)
    llm.close()
    with pytest.raises(ClosedError):
        llm.detokenize([300])


def test_it_can_stand_in_for_the_class_itself(routed):
    """Programs put it in llama_cpp's place; what it takes from its base class is not looked up there."""
    done = survives(f"""
        import llama_cpp, first_cpp
        llama_cpp.Llama = llama_cpp.llama.Llama = first_cpp.Llama
        llm = llama_cpp.Llama({routed!r}, skip=0.34, n_ctx=256, verbose=False)
        print(llm.create_completion([1, 5], max_tokens=3)["usage"]["prompt_tokens"], len([*zip("ab", llm.generate([1, 5]))]))
    """)
    assert done.stdout == "2 2\n", done.stderr
