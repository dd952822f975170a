"""Many prompts answered in one context: as stock llama_cpp answers each alone."""

from __future__ import annotations

import llama_cpp
import numpy as np
import pytest
from architectures.write import write_tiny
from helpers import greedy, survives

from first_cpp import Llama
from first_cpp.errors import LogitsError, ModelFileError
from first_cpp.gguf.model_file import ModelFile
from first_cpp.gguf.quantise import quantise
from first_cpp.streams.cost import Targets
from first_cpp.streams.engine import Engine
from first_cpp.streams.quick_copy import quick_copy
from first_cpp.streams.together import answers_together, first_choice

PROMPTS = [[5, 6, 7], [9], [30, 31, 32, 33, 34, 35], [7, 7], [12, 90, 4]]


@pytest.fixture
def engine(tiny):
    made = Engine(tiny, 64, 1, streams=2)
    yield made
    made.close()


def test_answers_are_those_of_each_prompt_alone(engine, tiny, load):
    """More prompts than streams: a stream that is free reads the next one."""
    found = dict(answers_together(engine, PROMPTS, 9))
    stock = load(tiny, llama_cpp.Llama)
    assert sorted(found) == [0, 1, 2, 3, 4]
    for number, prompt in enumerate(PROMPTS):
        assert (found[number].tokens, found[number].end) == (greedy(stock, prompt, 9), None)


def test_answers_skip_layers_as_each_prompt_alone(tiny, load, monkeypatch):
    """Answers that end early leave gaps among the streams, which the last ones fill."""
    alone = load(tiny, Llama, skip=[1, 4])
    expected = [greedy(alone, prompt, 9) for prompt in PROMPTS]
    lengths, moved, move = [2, 9, 1, 9, 5], [], Engine.move
    monkeypatch.setattr(Engine, "move", lambda self, *where: (moved.append(where), move(self, *where)))
    engine = Engine(tiny, 64, 1, streams=4)
    try:
        n_read = [0] * len(PROMPTS)

        def choose(number, logits):
            n_read[number] += 1
            return int(logits.argmax()) if n_read[number] <= lengths[number] else -1

        monkeypatch.setattr(llama_cpp, "llama_vocab_is_eog", lambda _vocabulary, token: token == -1)
        found = dict(answers_together(engine, PROMPTS, 9, choose, skipped=frozenset({1, 4})))
    finally:
        engine.close()
    assert [found[number].tokens for number in range(5)] == [one[:n] for one, n in zip(expected, lengths, strict=True)]
    assert moved


def test_an_answer_ends_with_the_model_or_with_its_room(engine, monkeypatch):
    long = [5] * (engine.room - 2)
    found = dict(answers_together(engine, [long, PROMPTS[0]], 20))
    assert (len(found[0].tokens), len(found[1].tokens)) == (2, 20)
    last = found[1].tokens[3]
    monkeypatch.setattr(llama_cpp, "llama_vocab_is_eog", lambda _vocabulary, token: token == last)
    again = dict(answers_together(engine, [PROMPTS[0]], 20))
    ends = found[1].tokens.index(last)
    assert (again[0].tokens, again[0].end) == (found[1].tokens[:ends], last)


def test_another_choice_and_another_way_to_read(engine):
    """What a caller chooses is what is read on, and it is told which prompt it reads."""
    read = []

    def read_prompt(number, prompt, stream):
        read.append((number, len(prompt)))
        engine.read_prompt(prompt, stream)
        return engine.row(-1)

    found = dict(answers_together(engine, PROMPTS, 4, lambda number, logits: number + 40, read_prompt))
    assert {number: one.tokens for number, one in found.items()} == {number: [number + 40] * 4 for number in range(5)}
    assert sorted(read) == [(number, len(prompt)) for number, prompt in enumerate(PROMPTS)]


def test_a_copy_is_made_where_batches_are_slow_and_removed(tiny, tmp_path):
    slow, path, said = str(tmp_path / "slow.gguf"), tmp_path / "copy.gguf", []
    with quick_copy(ModelFile.open(tiny), str(path), said.append) as found:
        assert (found, said) == (tiny, [])
    quantise(tiny, slow, "Q4_1")
    with quick_copy(ModelFile.open(slow), str(path), said.append) as found:
        assert found == str(path)
        assert {tensor.type for _, tensor in ModelFile.open(found).tensors()} == {"q8_0", "f32"}
    assert not path.exists()
    assert said == [f"evaluating a copy in Q8_0, {path}: batches of q4_1 are slow in llama.cpp"]


@pytest.mark.parametrize("architecture", ["gemma3", "jamba", "deepseek4"])
def test_all_of_a_stream_moves(tmp_path, architecture):
    """Windows, recurrent states, and DeepSeek 4's compressed ones."""
    write_tiny(tmp_path / "model.gguf", architecture)
    prompt, answer = list(range(5, 61)), [131, 211, 308, 86]
    engine = Engine(str(tmp_path / "model.gguf"), 128, 1, streams=3)
    try:
        found = []
        for moved in (False, True):
            engine.read_prompt(prompt, 2)
            if moved:
                engine.move(2, 1)
            for i, token in enumerate(answer):
                engine.read_next([token], [len(prompt) + i], [1 if moved else 2])
                found.append(engine.row(0).copy())
    finally:
        engine.close()
    still, moved = np.array(found).reshape(2, len(answer), -1)
    assert moved == pytest.approx(still, abs=0.05)
    assert np.abs(still[0] - still[1]).max() > 0.5


@pytest.mark.parametrize("architecture", ["graniteswitch", "minimax-01"])
def test_no_architecture_ends_the_process(tmp_path, architecture):
    """llama.cpp would: for hidden states instead of tokens, and for several streams."""
    model = tmp_path / "model.gguf"
    write_tiny(model, architecture)
    done = survives(f"""
        from first_cpp.streams.engine import Engine
        from first_cpp.streams.together import answers_together
        engine = Engine({str(model)!r}, 64, 1, streams=3)
        print(sorted(len(one.tokens) for _, one in answers_together(engine, {PROMPTS}, 3)), engine.starts_anywhere)
        engine.close()
    """)
    assert done.stdout == "[3, 3, 3, 3, 3] False\n", done.stderr


def test_what_is_no_number_has_no_cost():
    """The KL of such logits was 0, by which every layer could be spared."""
    good, bad = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)
    bad[1, 2] = np.nan
    for compute in (Targets.of, Targets.of(good).cost, lambda logits: first_choice(0, logits[1])):
        assert compute(good) is not None
        with pytest.raises(LogitsError, match="logits that are no numbers"):
            compute(bad)


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_what_cannot_continue_a_text_is_refused(tmp_path, architecture, load):
    """Stock llama_cpp fails an assertion, or llama.cpp ends the process."""
    model = tmp_path / "model.gguf"
    write_tiny(model, architecture)
    with pytest.raises(ModelFileError, match="cannot continue a text: it has"):
        Engine(str(model), 64, 1)
    with pytest.raises(ModelFileError, match="cannot continue a text: it has"):
        next(load(model, Llama, n_ctx=64).generate([5, 6, 7]))
