"""Training data: bad lines are refused by file and line; epochs, limits and tokens are what they should be."""

from __future__ import annotations

import json
import os
import pathlib

import gguf
import numpy as np
import pytest
import reference
from architectures.write import write_tiny
from gguf_parts import I32, U16, Parts, Value, take_apart
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from training import Words, examples
from transformers import PreTrainedTokenizerFast

from first_cpp.cli.main import main
from first_cpp.errors import MissingFileError, ModelFileError
from first_cpp.gguf.synthetic import SHAPES
from first_cpp.train.examples import DataError, Example, batches, draw, encode_prompt, micro_batches, read_examples
from first_cpp.train.model import check_foldable, check_rotary, load_model
from first_cpp.train.same_output import llama_cpp_logits


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "a b"}', "2: response is missing"),
        (b'{"prompt": "a", "response": ""}', "2: response is empty"),
        (b'{"prompt": "a", "response": "  "}', "2: response is empty"),
        (b'{"prompt": 3, "response": "b"}', "2: prompt is 3"),
        (b'["a", "b"]', "2: expected an object"),
        (b'{"prompt": "a", ', "2: not JSON"),
        (b'{"prompt": "\xff", "response": "b"}', "2: not UTF-8"),
        (b'{"prompt": "a a a a a a a a a a a", "response": "b"}', "2: the prompt has 11 tokens, at most 10"),
        (b'{"prompt": "a", "response": "b b b b b b"}', "2: the response has 6 tokens, at most 5"),
        (b"", "2: not JSON"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "2: not JSON that can be read"),
        (b'{"prompt": ' + b"[" * 100_000, "2: not JSON that can be read"),
        (b'{"prompt": "a \\ud800", "response": "b"}', "2: prompt has half of a surrogate pair"),
        (b'{"prompt": "a", "response": "b", "task": "\\ud800"}', "2: task has half of a surrogate pair"),
        (b'{"prompt": "a", "response": "b", "task": ["qa"]}', r"2: task is \['qa'\], expected text"),
    ],
)
def test_bad_data_names_file_and_line(tmp_path, line, said):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "a", "response": "b"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"data\.jsonl:{said}"):
        read_examples([str(path)], Words(), 10, 6)


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a b", "response": "c"}\r\n{"prompt": "d", "response": "e f"}\r\n')
    assert [len(one.prompt) for one in read_examples([str(path)], Words(), 10, 6)] == [2, 1]


def test_missing_and_empty_data(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.jsonl"):
        read_examples(["none.jsonl"], Words(), 10, 6)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="no examples"):
        read_examples([str(tmp_path / "empty.jsonl")], Words(), 10, 6)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    """Answers end with it; without one, the first batch would be no tensor."""
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n')
    words = Words()
    words.eos_token_id = None
    with pytest.raises(DataError, match="no end token"):
        read_examples([str(path)], words, 10, 10)


def test_every_epoch_has_every_example_once():
    group = examples(50)
    found = [example for batch in batches(group, 4, 0, 1) for example in batch]
    assert sorted(map(id, found)) == sorted(map(id, group))
    assert [b[0].prompt for b in batches(group, 4, 0, 1)] != [b[0].prompt for b in batches(group, 4, 0, 2)]


@pytest.mark.slow  # transformers makes a tokenizer of a GGUF
@pytest.mark.smollm2
def test_tokens_are_llama_cpps(smollm2, load):
    from transformers import AutoTokenizer

    from first_cpp.runtime.chat_prompt import chat_prompt

    folder, name = os.path.split(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
    text = "Translate: Hello  wörld\n\nagain 😀 12345"
    assert encode_prompt(tokenizer, text) == chat_prompt(load(smollm2), text)


def test_parts_are_as_large_as_allowed():
    group = [Example("t", [1] * n, [1] * 2) for n in (2, 3, 4, 9, 30, 1)]
    assert [[len(e.prompt) for e in part] for part in micro_batches(group, 18)] == [[2, 3, 4], [9], [30], [1]]


def test_a_limit_draws_tasks_in_equal_parts():
    group = [Example("many" if i % 5 else "few", [i], [0]) for i in range(50)]
    found = draw(group, 30, 3)
    assert [sum(one.task == task for one in found) for task in ("few", "many")] == [10, 20]
    assert found == draw(group, 30, 3) != draw(group, 30, 4)
    assert draw(group, None, 0) == draw(group, 50, 0) == group


@pytest.mark.parametrize(
    ("scaling", "tensor", "said"),
    [
        (gguf.RopeScalingType.LINEAR, "x", "llama.rope.scaling.type = linear"),
        (gguf.RopeScalingType.NONE, "rope_freqs.weight", "tensor rope_freqs.weight"),
        (None, "rope_factors_long.weight", "tensor rope_factors_long.weight"),
        (gguf.RopeScalingType.NONE, "x", None),
        (None, "x", None),
    ],
)
def test_a_gguf_with_scaled_rotary_embeddings_is_not_trained(tmp_path, scaling, tensor, said):
    path = str(tmp_path / "m.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    if scaling is not None:
        writer.add_rope_scaling_type(scaling)
    writer.add_tensor(tensor, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if said is None:
        check_rotary(path)
        return
    with pytest.raises(ModelFileError, match=f"{said}.*Hugging Face folder"):
        load_model(path)


def test_a_gguf_in_several_files_is_not_trained(tmp_path, tiny):
    """transformers reads the file that it is given alone, and makes up the weights of the others."""
    whole = take_apart(pathlib.Path(tiny).read_bytes())
    for number, tensors in enumerate((whole.tensors[:20], whole.tensors[20:])):
        pairs = {"split.no": Value(U16, number), "split.count": Value(U16, 2), "split.tensors.count": Value(I32, 40)}
        part = Parts({**(whole.pairs if number == 0 else {}), **pairs}, tensors, whole.alignment)
        (tmp_path / f"m-0000{number + 1}-of-00002.gguf").write_bytes(part.dump())
    with pytest.raises(ModelFileError, match=r"m-00001-of-00002.gguf is split in 2 files.*llama-gguf-split"):
        load_model(str(tmp_path / "m-00001-of-00002.gguf"))


def test_a_gguf_of_which_transformers_loses_something_is_not_trained(tmp_path, tiny):
    """Here norms of q and k, and biases; llama_cpp is the oracle."""
    path = tmp_path / "stablelm.gguf"
    write_tiny(path, "stablelm")
    with pytest.raises(ModelFileError, match=r"other outputs of .*stablelm\.gguf than llama\.cpp \(they differ by \d\d%"):
        load_model(str(path))
    assert load_model(tiny)[0].config.num_hidden_layers == 6
    with pytest.raises(ModelFileError, match=r"llama\.cpp cannot load none"):
        llama_cpp_logits("none", [1, 2])


@pytest.mark.parametrize(("kind", "foldable"), [("mistral", True), ("qwen3", True), ("falcon", False), (7, True), (None, True)])
def test_folders_that_a_lora_can_be_folded_into(tmp_path, kind, foldable):
    """Of a configuration that says nothing transformers knows what is wrong."""
    (tmp_path / "config.json").write_text("{" if kind is None else json.dumps({"model_type": kind}))
    if foldable:
        check_foldable(str(tmp_path))
        return
    with pytest.raises(ModelFileError, match="no LoRA can be folded into falcon models; --rank 0"):
        check_foldable(str(tmp_path))


@pytest.fixture
def hf_folder(tmp_path):
    """A Hugging Face folder with a tokenizer of words."""
    folder = tmp_path / "hf"
    reference.make_model(SHAPES["tiny"]).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    return folder


def test_a_folder_that_lacks_weights_is_not_trained(hf_folder):
    """transformers makes up what is missing, and says so in a log."""
    assert load_model(str(hf_folder))[1].eos_token_id == 1
    path = hf_folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match=r"lacks 1 of the model's weights.*: model\.layers\.3\.mlp\.up_proj\.weight"):
        load_model(str(hf_folder))


def test_a_folder_whose_weights_are_cut_off_is_an_error(hf_folder):
    path = hf_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="transformers cannot read"):
        load_model(str(hf_folder))


def test_a_lora_that_nothing_could_fold_in_is_not_trained(tmp_path, capsys):
    """Training takes hours; `convert` would refuse it afterwards."""
    path = str(tmp_path / "m.gguf")
    writer = gguf.GGUFWriter(path, "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    assert main(["train", "--model", path, "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no LoRA can be folded into falcon models; --rank 0 trains routers alone" in said
    assert not (tmp_path / "run").exists()
