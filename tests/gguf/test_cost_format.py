"""Version 2 of the format: levels, sets of layers, cost probes; what is written is what is read, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from raw_gguf import BOOL, F32, I32, STR, U8, U32, array, gguf_bytes, scalar
from routers_files import ORDER, SETS, TABLE, budget_routers, cost_probes
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from first_cpp import Llama, RouterError, Routers, load_routers
from first_cpp._ext import GgufFile
from first_cpp.errors import FirstCppError
from first_cpp.gguf.cost_probes import LayerSet, TolerancePoint
from first_cpp.gguf.embed import embed, write_sidecar
from first_cpp.gguf.model_file import ModelFile
from first_cpp.gguf.router_format import read_safetensors, write_safetensors
from first_cpp.gguf.routers import check_values

KINDS = ["sets", "layers"]
NAN, INF = float("nan"), float("inf")


def same(one: Routers, other: Routers) -> bool:
    """Equal but for the writer; numbers as float32 keeps them."""
    found, expected = one.cost, other.cost
    assert found is not None
    assert expected is not None
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for name in ("norm_eps", "tolerance", "fidelity", "margin"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6)
    for a, b in zip(found.table, expected.table, strict=True):
        assert dataclasses.astuple(a) == pytest.approx(dataclasses.astuple(b), rel=1e-6)
    return (found.sets, found.read, found.order) == (expected.sets, expected.read, expected.order) and (
        one.kind,
        one.skippable,
        one.train,
    ) == (other.kind, other.skippable, other.train)


# -- what is written is what is read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sidecar", [False, True])
def test_through_a_gguf(tiny, tmp_path, kind, sidecar):
    routers, out = budget_routers(tiny, kind), tmp_path / "out.gguf"
    if sidecar:
        write_sidecar(routers, tiny, out)
    else:
        embed(routers, tiny, out, quiet=True)
    assert same(load_routers(str(out)), routers)
    file = GgufFile(str(out))
    assert (file.get("first.version"), file.get("first.kind")) == (2, kind.encode())
    assert ("first.router.weight" in file.keys()) == (kind == "layers")
    assert ("first.set.layers" in file.keys()) == (kind == "sets")


@pytest.mark.parametrize("kind", KINDS)
def test_through_safetensors(tiny, tmp_path, kind):
    routers, path = budget_routers(tiny, kind, table=()), str(tmp_path / "r.safetensors")
    write_safetensors(path, routers)
    assert same(read_safetensors(path, routers.base, 0.5), routers)


@pytest.mark.parametrize("how", [[], ["--sidecar"], ["--replace"]])
@pytest.mark.parametrize("kind", KINDS)
def test_convert_keeps_them(tiny, tmp_path, kind, how):
    routers, path, out = budget_routers(tiny, kind), str(tmp_path / "r.safetensors"), str(tmp_path / "out.gguf")
    write_safetensors(path, routers)
    model = tiny
    if how == ["--replace"]:
        model = str(tmp_path / "other.gguf")
        embed(budget_routers(tiny, "layers" if kind == "sets" else "sets", seed=5), tiny, model, quiet=True)
    assert main(["--routers", path, "--model", model, "--out", out, "--quiet", *how]) == 0
    assert same(load_routers(out), routers)
    assert [key for key in GgufFile(out).keys() if key.startswith("first.router.")] == (
        ["first.router.skippable"]
        if kind == "sets"
        else [f"first.router.{name}" for name in ("weight", "bias", "norm_eps", "skippable")]
    )


def test_files_without_cost_probes_are_of_version_1(tiny, tmp_path):
    """Earlier readers take them."""
    routers = dataclasses.replace(budget_routers(tiny, "layers"), cost=None)
    write_sidecar(routers, tiny, tmp_path / "one.gguf")
    file = GgufFile(str(tmp_path / "one.gguf"))
    assert file.get("first.version") == 1
    assert not [key for key in file.keys() if key.startswith(("first.kind", "first.cost", "first.set"))]
    assert load_routers(str(tmp_path / "one.gguf")).cost is None


def test_facts_of_levels(tiny):
    cost = cost_probes()
    assert cost.levels == (1, 2, 4)
    assert [cost.of_level(level) for level in (1, 2, 3)] == [(0, 1), (2,), ()]
    assert cost.changed(0.04) == pytest.approx(0.04)
    assert cost.changed(0.0) == 0
    assert cost.changed(99) == pytest.approx(0.2)
    assert cost.mean_share(0.05) == pytest.approx(0.2)
    assert cost.tolerance_for(0.3) == pytest.approx(0.275)
    assert cost.tolerance_for(0.41) is None
    bare = cost_probes(table=())
    assert (bare.changed(0.1), bare.mean_share(0.1), bare.tolerance_for(0.1)) == (None, 0.0, None)


# -- what is wrong is named -----------------------------------------------------------------------------------------------


def good(model: str) -> dict[str, bytes]:
    return {
        "general.architecture": scalar(STR, b"llama"),
        "general.type": scalar(STR, b"adapter"),
        "first.version": scalar(U32, 2),
        "first.kind": scalar(STR, b"sets"),
        "first.writer": scalar(STR, b"a test"),
        "first.base.architecture": scalar(STR, b"llama"),
        "first.base.n_layer": scalar(U32, 6),
        "first.base.n_embd": scalar(U32, 128),
        "first.base.fingerprint": scalar(STR, ModelFile.open(model).fingerprint.encode()),
        "first.router.skippable": array(BOOL, [True] * 5 + [False]),
        "first.policy.skip": scalar(F32, 0.34),
        "first.cost.level": array(U32, [1, 1, 2, 4]),
        "first.cost.read": array(U32, [1, 4]),
        "first.cost.weight": array(F32, [0.01] * (4 * 2 * 128)),
        "first.cost.bias": array(F32, [-3.5, -3.5, -3.0, -2.0]),
        "first.cost.norm_eps": scalar(F32, 1e-5),
        "first.cost.tolerance": scalar(F32, 0.1),
        "first.cost.fidelity": scalar(F32, 0.95),
        "first.cost.margin": scalar(F32, 0.1),
        "first.cost.table.tolerance": array(F32, [0.01, 0.1]),
        "first.cost.table.share": array(F32, [0.1, 0.2]),
        "first.cost.table.kl": array(F32, [0.01, 0.1]),
        "first.cost.table.fidelity": array(F32, [0.99, 0.9]),
        "first.set.layers": array(U32, [3, 1, 3, 4, 1, 2, 3, 4]),
        "first.set.order": array(U32, [3, 4, 1, 2, 5, 0]),
    }


C, S, T = "first.cost.", "first.set.", "first.cost.table."
LAYERS = S + "layers"
# name: (changed key -> value or None to leave it out, what the error says)
CHANGES = {
    "kind unknown": ({"first.kind": scalar(STR, b"spans")}, "first.kind is 'spans', expected layers or sets"),
    "kind missing": ({"first.kind": None}, "first.kind is missing, expected str"),
    "kind a number": ({"first.kind": scalar(U32, 1)}, "first.kind is u32, expected str"),
    "kind layers without routers": ({"first.kind": scalar(STR, b"layers")}, "first.router.weight is missing"),
    "version 1 with sets alone": ({"first.version": scalar(U32, 1)}, "first.router.weight is missing"),
    "level missing": ({C + "level": None}, "first.cost.level is missing, expected arr[u32]"),
    "level i32": ({C + "level": array(I32, [1, 1, 2, 4])}, "first.cost.level is arr[i32], expected arr[u32]"),
    "level u8": ({C + "level": array(U8, [1, 1, 2, 4])}, "first.cost.level is arr[u8]"),
    "level scalar": ({C + "level": scalar(U32, 4)}, "first.cost.level is u32, expected arr[u32]"),
    "no level": (
        {C + "level": array(U32, []), C + "weight": array(F32, []), C + "bias": array(F32, []), LAYERS: array(U32, [])},
        "first.cost.level has 0 sets, expected 1 to 4096",
    ),
    "too many sets": ({C + "level": array(U32, [1] * 4097)}, "first.cost.level has 4097 elements, expected at most 4096"),
    "levels not ascending": (
        {C + "level": array(U32, [1, 1, 4, 2]), LAYERS: array(U32, [3, 1, 1, 2, 3, 4, 3, 4])},
        "first.cost.level has 2 after 4, expected ascending levels",
    ),
    "level 0": (
        {C + "level": array(U32, [0, 1, 2, 4]), LAYERS: array(U32, [3, 3, 4, 1, 2, 3, 4])},
        "first.cost.level is 0, expected 1 to 5",
    ),
    "level of all layers": (
        {C + "level": array(U32, [1, 1, 2, 6]), LAYERS: array(U32, [3, 1, 3, 4, 0, 1, 2, 3, 4, 5])},
        "first.cost.level is 6, expected 1 to 5 layers",
    ),
    "level 2^32-1": ({C + "level": array(U32, [1, 1, 2, 0xFFFFFFFF])}, "expected 4294967299"),
    "last is not there": (
        {C + "last": array(U32, [6]), C + "weight": array(F32, [0.01] * (4 * 3 * 128))},
        "first.cost.last names layer 6, expected 0 to 5",
    ),
    "last twice": (
        {C + "last": array(U32, [4, 4]), C + "weight": array(F32, [0.01] * (4 * 4 * 128))},
        "first.cost.last names layer 4 more than once",
    ),
    "last without its weights": ({C + "last": array(U32, [4])}, "first.cost.weight has 1024 elements, expected 1536"),
    "last as text": ({C + "last": scalar(STR, b"4")}, "first.cost.last is str, expected arr[u32]"),
    "read missing": ({C + "read": None}, "first.cost.read is missing"),
    "read nothing": ({C + "read": array(U32, []), C + "weight": array(F32, [])}, "first.cost.last name no layer"),
    "read a layer that is not there": ({C + "read": array(U32, [1, 6])}, "first.cost.read names layer 6, expected 0 to 5"),
    "read twice": ({C + "read": array(U32, [4, 4])}, "first.cost.read names layer 4 more than once"),
    "read unsorted": ({C + "read": array(U32, [4, 1])}, "first.cost.read has layer 1 after 4, expected ascending"),
    "read more than there are": ({C + "read": array(U32, [0] * 7)}, "first.cost.read has 7 elements, expected at most 6"),
    "weight too short": ({C + "weight": array(F32, [0.0] * 1023)}, "first.cost.weight has 1023 elements, expected 1024"),
    "weight u8": ({C + "weight": array(U8, [0] * 1024)}, "first.cost.weight is arr[u8], expected arr[f32]"),
    "weight NaN": ({C + "weight": array(F32, [0.0] * 600 + [NAN] + [0.0] * 423)}, "first.cost.weight of set 2 is not finite"),
    "weight Inf": ({C + "weight": array(F32, [-INF] + [0.0] * 1023)}, "first.cost.weight of set 0 is not finite"),
    "weight overflows": ({C + "weight": array(F32, [1e38] * 1024)}, "its cost overflows float32"),
    "bias too long": ({C + "bias": array(F32, [0.0] * 5)}, "first.cost.bias has 5 elements, expected 4"),
    "bias NaN": ({C + "bias": array(F32, [0, 0, NAN, 0])}, "first.cost.bias of set 2 is not finite"),
    "bias overflows": ({C + "bias": array(F32, [0, 3e38, 0, 0])}, "bias of set 1 is too large"),
    "norm_eps missing": ({C + "norm_eps": None}, "first.cost.norm_eps is missing"),
    "norm_eps 0": ({C + "norm_eps": scalar(F32, 0.0)}, "first.cost.norm_eps is 0.0, expected a number above 0"),
    "norm_eps NaN": ({C + "norm_eps": scalar(F32, NAN)}, "first.cost.norm_eps is nan"),
    "tolerance missing": ({C + "tolerance": None}, "first.cost.tolerance is missing, expected f32"),
    "tolerance negative": ({C + "tolerance": scalar(F32, -0.5)}, "first.cost.tolerance is -0.5, expected a finite number"),
    "tolerance Inf": ({C + "tolerance": scalar(F32, INF)}, "first.cost.tolerance is inf"),
    "tolerance NaN": ({C + "tolerance": scalar(F32, NAN)}, "first.cost.tolerance is nan"),
    "margin negative": ({C + "margin": scalar(F32, -0.5)}, "first.cost.margin is -0.5"),
    "margin NaN": ({C + "margin": scalar(F32, NAN)}, "first.cost.margin is nan"),
    "fidelity 0": ({C + "fidelity": scalar(F32, 0.0)}, "first.cost.fidelity is 0.0"),
    "fidelity above 1": ({C + "fidelity": scalar(F32, 1.5)}, "first.cost.fidelity is 1.5"),
    "set missing": ({LAYERS: None}, "first.set.layers is missing"),
    "set too short": ({LAYERS: array(U32, [3, 1, 3, 4, 1, 2, 3])}, "first.set.layers has 7 elements, expected 8"),
    "set with a layer twice": (
        {LAYERS: array(U32, [3, 1, 3, 3, 1, 2, 3, 4])},
        "first.set.layers: set 2 names layer 3 more than once",
    ),
    "set unsorted": ({LAYERS: array(U32, [3, 1, 4, 3, 1, 2, 3, 4])}, "set 2 has layer 3 after 4, expected ascending layers"),
    "set with a layer that is not there": ({LAYERS: array(U32, [3, 6, 3, 4, 1, 2, 3, 4])}, "set 1 names layer 6, expected 0"),
    "set with an unskippable layer": (
        {LAYERS: array(U32, [3, 5, 3, 4, 1, 2, 3, 4])},
        "set 1 skips layer 5, which first.router.skippable says must stay",
    ),
    "the same set twice": ({LAYERS: array(U32, [3, 3, 3, 4, 1, 2, 3, 4])}, "set 1 is the same as set 0"),
    "order missing": ({S + "order": None}, "first.set.order is missing"),
    "order too short": ({S + "order": array(U32, [3, 4, 1])}, "first.set.order has 3 elements, expected 6"),
    "order with a layer twice": ({S + "order": array(U32, [3, 4, 1, 2, 5, 5])}, "expected each of 6 layers once"),
    "order out of range": ({S + "order": array(U32, [3, 4, 1, 2, 5, 0xFFFFFFFF])}, "expected each of 6 layers once"),
    "table column missing": ({T + "kl": None}, "first.cost.table.kl is missing"),
    "table columns of other lengths": ({T + "kl": array(F32, [0.1])}, "first.cost.table.kl has 1 elements, expected 2"),
    "table NaN": ({T + "fidelity": array(F32, [0.9, NAN])}, "first.cost.table.fidelity 1 is nan"),
    "table share above 1": ({T + "share": array(F32, [0.1, 1.5])}, "first.cost.table.share 1 is 1.5, expected a finite"),
    "table KL negative": ({T + "kl": array(F32, [-0.1, 0.1])}, "first.cost.table.kl 0 is -0.1"),
    "table not ascending": ({T + "tolerance": array(F32, [0.1, 0.01])}, "has 0.01 after 0.1, expected ascending tolerances"),
    "table too long": ({T + "tolerance": array(F32, [0.0] * 4097)}, "has 4097 elements, expected at most 4096"),
    "other base": ({"first.base.fingerprint": scalar(STR, b"0" * 64)}, "the norm weights differ"),
    "recommended share": ({"first.policy.skip": scalar(F32, NAN)}, "first.policy.skip is nan"),
}


def write(path: pathlib.Path, model: str, changes: dict[str, bytes | None]) -> str:
    pairs = {**good(model), **changes}
    path.write_bytes(gguf_bytes([(key, value) for key, value in pairs.items() if value is not None]))
    return str(path)


def test_the_unchanged_file_loads(tiny, tmp_path, load):
    """Else the cases below would prove nothing."""
    found = load(tiny, routers=write(tmp_path / "good.gguf", tiny, {})).routers
    assert (found.kind, found.cost.sets, found.cost.order) == ("sets", SETS, ORDER)
    assert found.weight.shape == (0, 128)
    assert len(found.cost.table) == 2


@pytest.mark.parametrize("name", CHANGES)
def test_refused_with_key_expected_and_found(tiny, tmp_path, name):
    changes, said = CHANGES[name]
    path = write(tmp_path / "bad.gguf", tiny, changes)
    with pytest.raises(RouterError) as error:
        Llama(tiny, routers=path, verbose=False)
    assert said in str(error.value)
    assert path in str(error.value)


def test_sets_beside_routers_are_refused(tiny, tmp_path):
    """Which of them would choose?"""
    out = tmp_path / "out.gguf"
    write_sidecar(budget_routers(tiny, "layers"), tiny, out)
    file = GgufFile(str(out))
    file.set_u32_array("first.set.layers", [3, 3, 4, 1, 2, 3, 4])
    out.write_bytes(file.metadata())
    with pytest.raises(RouterError, match=r"first\.set\.layers and first\.set\.order go with first\.kind sets"):
        load_routers(str(out))
    both = dataclasses.replace(budget_routers(tiny, "layers"), cost=cost_probes("sets"))
    with pytest.raises(RouterError, match=r"go with first\.kind sets"):
        check_values(both, "both")


def test_two_levels_alike_are_refused_where_routers_choose(tiny):
    sets = (LayerSet(1), LayerSet(1), LayerSet(2))
    with pytest.raises(RouterError, match="has 1 after 1, expected ascending levels"):
        check_values(budget_routers(tiny, "layers", sets=sets), "f")


def test_values_are_checked_before_they_are_written(tiny, tmp_path):
    bad = budget_routers(tiny, table=(TolerancePoint(0.1, 0.2, NAN, 0.9),))
    for write_bad in (lambda: write_sidecar(bad, tiny, tmp_path / "o"), lambda: write_safetensors(str(tmp_path / "s"), bad)):
        with pytest.raises(RouterError, match=r"table\.kl 0 is nan"):
            write_bad()
    short = budget_routers(tiny, weight=np.zeros((4, 1, 128), np.float32))
    with pytest.raises(
        RouterError, match=r"first\.cost\.weight has shape \[4, 1, 128\], these sets and layers need \[4, 2, 128\]"
    ):
        check_values(short, "f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sets": [["1", [3]]]}, "no whole number"),
        ({"sets": [[1, [3.0]]]}, "no whole number"),
        ({"sets": [[True, [3]]]}, "no whole number"),
        ({"sets": None}, "not what first_cpp writes"),
        ({"read": None}, "not what first_cpp writes"),
        ({"last": 3}, "not what first_cpp writes"),
        ({"last": [2]}, "first.cost.weight has shape"),
        ({"tolerance": "much"}, "not what first_cpp writes"),
        ({"table": [[1, 2]]}, "not what first_cpp writes"),
        ({"tolerance": NAN}, "first.cost.tolerance is nan"),
    ],
)
def test_safetensors_metadata_that_is_not_ours(tiny, tmp_path, change, said):
    path = str(tmp_path / "r.safetensors")
    write_safetensors(path, budget_routers(tiny))
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file(tensors, path, metadata={**metadata, "cost": json.dumps(json.loads(metadata["cost"]) | change)})
    with pytest.raises(RouterError, match=said):
        read_safetensors(path, ModelFile.open(tiny).base, 1e-5)
    save_file({"cost.bias": tensors["cost.bias"]}, path, metadata=metadata)
    with pytest.raises(RouterError, match=r"'cost.weight' is missing"):
        read_safetensors(path, ModelFile.open(tiny).base, 1e-5)


def test_cut_anywhere(tiny, tmp_path):
    path = tmp_path / "side.gguf"
    write_sidecar(budget_routers(tiny), tiny, path)
    whole = path.read_bytes()
    for n in range(0, len(whole), 307):
        path.write_bytes(whole[:n])
        with pytest.raises(FirstCppError):
            load_routers(str(path))


def test_the_table_survives(tiny, tmp_path):
    write_sidecar(budget_routers(tiny), tiny, tmp_path / "s.gguf")
    found = load_routers(str(tmp_path / "s.gguf")).cost.table
    assert [dataclasses.astuple(point) for point in found] == [pytest.approx(dataclasses.astuple(point)) for point in TABLE]


@pytest.mark.parametrize(("read", "last"), [((1, 4), (2,)), ((), (0, 5))])
def test_what_is_read_of_the_last_position_survives(tiny, tmp_path, read, last):
    given = budget_routers(tiny, read=read, last=last)
    write_sidecar(given, tiny, tmp_path / "s.gguf")
    write_safetensors(str(tmp_path / "r.safetensors"), given)
    for found in (
        load_routers(str(tmp_path / "s.gguf")),
        read_safetensors(str(tmp_path / "r.safetensors"), given.base, 1e-5),
    ):
        assert (found.cost.read, found.cost.last) == (read, last)
        np.testing.assert_array_equal(found.cost.weight, given.cost.weight)
