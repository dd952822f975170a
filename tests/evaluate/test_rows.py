"""The rows of an evaluation, as they are typed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from routers_files import routed_model

from first_cpp.errors import MissingFileError, SkipError
from first_cpp.evaluate.command import _names
from first_cpp.evaluate.rows import RowPlan, parse_row
from first_cpp.skip import fixed_layers


def test_static_sets():
    assert fixed_layers("last", 0.34, 6) == (4, 5)
    assert fixed_layers("even", 0.34, 6) == (2, 3)
    assert fixed_layers("even", 0.25, 30) == tuple(round((i + 1) * 29 / 9) for i in range(8))
    assert fixed_layers("influence", 0.5, 6, [5, 1, 4, 0, 3, 2]) == (1, 4, 5)
    assert fixed_layers("random", 0.5, 6, seed=1) == fixed_layers("random", 0.5, 6, seed=1)
    assert len(fixed_layers("random", 0.5, 30)) == 15


def test_rows_as_typed(tiny):
    def parse(text, order=()):
        return parse_row(text, lambda model, routers: order)

    row = parse(f"tuned={tiny}@0.25")
    assert (row.name, row.system, row.file, row.skip, row.share) == ("tuned@0.25", "tuned", tiny, 0.25, 0.25)
    assert parse(f"tuned={tiny}").skip is None
    best = parse(f"best={tiny}@3,1")
    assert (best.name, best.skip, best.share) == ("best@2/6", (1, 3), 2 / 6)
    auto = parse(f"tuned={tiny}@auto")
    assert (auto.name, auto.skip, auto.share) == ("tuned@auto", "auto", 0.0)
    even = parse(f"even+lora={tiny}@even:0.34")
    assert (even.name, even.system, even.skip, even.share) == ("even+lora@0.34", "even+lora", (2, 3), 0.34)
    assert parse(f"x={tiny}@influence:0.34", [4, 0, 1, 2, 3, 5]).skip == (0, 4)
    with pytest.raises(MissingFileError, match=r"--row x: there is no file a\.gguf"):
        parse("x=a.gguf@0.25")
    for text in (
        "a.gguf",
        "=a.gguf",
        "x=",
        f"x={tiny}@2",
        f"x={tiny}@even:",
        f"x={tiny}@even:1,2",
        f"x={tiny}@2,6",
        f"x={tiny}@odd:0.5",
        f"x={tiny}@search:0.5",
    ):
        with pytest.raises(ValueError, match=r"--row|skip|layers 'odd'|was not trained"):
            parse(text)
    with pytest.raises(SkipError, match="'odd' is unknown"):
        fixed_layers("odd", 0.5, 6)


def test_a_path_may_have_an_at_sign(tiny, tmp_path):
    folder = tmp_path / "me@home"
    folder.mkdir()
    file = str(shutil.copy(tiny, folder / "m@1.gguf"))
    assert parse_row(f"x={file}", lambda model, routers: ()).file == file
    row = parse_row(f"x={file}@4,1", lambda model, routers: ())
    assert (row.file, row.skip) == (file, (1, 4))


def test_a_row_leaves_out_the_layers_that_its_lora_was_trained_for(tiny, tmp_path):
    def trained(number, **train):
        return routed_model(tiny, tmp_path, number, **{f"train.{key}": value for key, value in train.items()})

    def parse(kind, file, seed=0):
        return parse_row(f"x={file}@{kind}:0.34", lambda model, routers: [0, 1, 2, 3, 4, 5], seed).skip

    search = trained(1, layers="search", seed="3", order="5,2,0,1,3,4")
    influence = trained(2, layers="influence", seed="3", order="1,4,0,2,3,5")
    assert parse("search", search) == (2, 5)
    assert parse("influence", influence) == (1, 4)
    assert parse("influence", search) == (0, 1)
    with pytest.raises(ValueError, match="was not trained with layers of the kind 'search'"):
        parse("search", influence)
    for number, order in ((5, "1,2,3"), (6, "a,b"), (7, "0,1,2,3,4,4")):
        with pytest.raises(ValueError, match=r"first\.train\.order"):
            parse("search", trained(number, layers="search", seed="3", order=order))
    random = trained(3, layers="random", seed="3")
    assert parse("random", random, seed=0) == fixed_layers("random", 0.34, 6, seed=3) != fixed_layers("random", 0.34, 6, seed=0)


def test_blocks_that_predict_further_tokens_are_not_layers(tmp_path):
    """Of 7 blocks one predicts further tokens: the last layers that an answer runs are 4 and 5."""
    import gguf

    path = tmp_path / "nextn.gguf"
    writer = gguf.GGUFWriter(str(path), "glm4moe")
    writer.add_block_count(7)
    writer.add_uint32("glm4moe.nextn_predict_layers", 1)
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plan = RowPlan(str(path), None, None, [0.34], ["last"], [f"x={path}@4,5"], tuple, seed=0)
    assert [row.skip for row in plan.rows()] == [None, 0.34, (4, 5), (4, 5)]
    with pytest.raises(SkipError, match="layer 6 does not exist"):
        parse_row(f"x={path}@5,6", tuple)


def test_influence_is_measured_on_the_model_that_skips(tiny, tmp_path):
    """With the side file whose LoRA it has; another row's on its own file."""
    side, other = routed_model(tiny, tmp_path, 5, sidecar=True), shutil.copy(tiny, tmp_path / "other.gguf")
    orders = {(tiny, side): [5, 4, 3, 2, 1, 0], (str(other), None): [0, 1, 2, 3, 4, 5]}
    given = [f"x={other}@influence:0.34"]
    plan = RowPlan(tiny, side, None, [0.34], ["influence"], given, lambda *of: orders[of], 0)
    assert [row.skip for row in plan.rows()] == [None, 0.34, (4, 5), (0, 1)]


def test_rows_have_names_of_their_own(routed):
    """Of shares that are written alike there is one, and of baselines that are named twice."""
    plan = RowPlan(routed, None, None, [0.33333331, 0.33333332], ["even"], [], lambda *of: [], 0)
    assert [row.name for row in plan.rows()] == ["dense", "routed@0.333333", "even@0.333333"]
    assert _names("even, last,even") == ["even", "last"]
    assert _names("none") == []
