"""One llama.cpp in the process, of the right version, under several models."""

from __future__ import annotations

import threading

import llama_cpp
import pytest
from helpers import greedy, survives, tokens
from routers_files import routed_model

PROMPT = tokens(40, seed=3)


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=21)


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


def test_it_can_stand_in_for_the_class_itself(routed):
    """Programs put it in llama_cpp's place; what it takes from its base class is not looked up there."""
    done = survives(f"""
        import llama_cpp, first_cpp
        llama_cpp.Llama = llama_cpp.llama.Llama = first_cpp.Llama
        llm = llama_cpp.Llama({routed!r}, skip=0.34, n_ctx=256, verbose=False)
        print(llm.create_completion([1, 5], max_tokens=3)["usage"]["prompt_tokens"], len([*zip("ab", llm.generate([1, 5]))]))
    """)
    assert done.stdout == "2 2\n", done.stderr
