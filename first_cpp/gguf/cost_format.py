"""The keys ``first.cost.*`` and ``first.set.*`` of a GGUF file, and the same in a safetensors file's metadata."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ext import GgufFile
from ..errors import RouterError
from .cost_probes import MAX_POINTS, MAX_SETS, CostProbes, LayerSet, TolerancePoint
from .typed_reader import TypedReader

NUMBERS = ("norm_eps", "tolerance", "fidelity", "margin")
COLUMNS = tuple(field.name for field in fields(TolerancePoint))


def read_cost_probes(reader: TypedReader, n_layer: int, n_embd: int, by_routers: bool) -> CostProbes:
    """The cost probes of an open file; values are `check_cost_probes`'s to check. by_routers: routers choose the layers."""
    levels = reader.some_ints("first.cost.level", MAX_SETS)
    last = reader.some_ints("first.cost.last", n_layer) if reader.has("first.cost.last") else ()
    read = reader.some_ints("first.cost.read", n_layer) if reader.has("first.cost.read") or not last else ()
    shape = (len(levels), len(read) + len(last), n_embd)
    weight = reader.floats("first.cost.weight", len(levels) * shape[1] * n_embd).reshape(shape)
    order: tuple[int, ...] = ()
    sets = tuple(LayerSet(level) for level in levels)
    if not by_routers:
        sets = _split(levels, reader.ints("first.set.layers", sum(levels)))
        order = reader.ints("first.set.order", n_layer)
    elif reader.has("first.set.layers") or reader.has("first.set.order"):
        order = (-1,)  # refused with the rest of what does not belong there
    return CostProbes(
        sets=sets,
        read=read,
        weight=weight,
        bias=reader.floats("first.cost.bias", len(levels)),
        **{name: reader.scalar(f"first.cost.{name}", "f32") for name in NUMBERS},
        order=order,
        table=_read_table(reader),
        last=last,
    )


def _split(levels: tuple[int, ...], layers: tuple[int, ...]) -> tuple[LayerSet, ...]:
    """The sets, from their sizes and all their layers one after another."""
    ends = np.cumsum((0, *levels)).tolist()
    return tuple(LayerSet(level, layers[start:end]) for level, start, end in zip(levels, ends[:-1], ends[1:], strict=True))


def _read_table(reader: TypedReader) -> tuple[TolerancePoint, ...]:
    if not reader.has("first.cost.table.tolerance"):
        return ()
    tolerances = reader.some_floats("first.cost.table.tolerance", MAX_POINTS)
    columns = [tolerances, *(reader.floats(f"first.cost.table.{name}", len(tolerances)) for name in COLUMNS[1:])]
    return tuple(TolerancePoint(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def add_cost_probes(file: GgufFile, cost: CostProbes) -> None:
    """Put cost probes into the metadata of a GGUF in memory."""
    file.set_u32_array("first.cost.level", [one.level for one in cost.sets])
    for name, layers in (("read", cost.read), ("last", cost.last)):
        if layers:
            file.set_u32_array(f"first.cost.{name}", list(layers))
    file.set_f32_array("first.cost.weight", np.ascontiguousarray(cost.weight, np.float32).reshape(-1))  # set by set
    file.set_f32_array("first.cost.bias", np.ascontiguousarray(cost.bias, np.float32))
    for name in NUMBERS:
        file.set_f32(f"first.cost.{name}", getattr(cost, name))
    if cost.order:
        file.set_u32_array("first.set.layers", [layer for one in cost.sets for layer in one.layers])
        file.set_u32_array("first.set.order", list(cost.order))
    for name in COLUMNS if cost.table else ():
        file.set_f32_array(f"first.cost.table.{name}", np.array([getattr(point, name) for point in cost.table], np.float32))


# -- safetensors ---------------------------------------------------------------------------------------------------


def cost_as_json(cost: CostProbes) -> str:
    """All of it that is no tensor."""
    plain: dict[str, Any] = {name: getattr(cost, name) for name in NUMBERS}
    plain |= {"read": cost.read, "last": cost.last, "order": cost.order, "sets": [[one.level, one.layers] for one in cost.sets]}
    return json.dumps(plain | {"table": [[getattr(point, name) for name in COLUMNS] for point in cost.table]})


def cost_from_json(text: str, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], path: str) -> CostProbes:
    """What `cost_as_json` wrote, with its tensors. Raises RouterError for another form."""
    try:
        plain = json.loads(text)
        return CostProbes(
            sets=tuple(LayerSet(_whole(level), _layers(layers)) for level, layers in plain["sets"]),
            read=_layers(plain["read"]),
            weight=weight,
            bias=bias,
            **{name: float(plain[name]) for name in NUMBERS},
            order=_layers(plain["order"]),
            table=tuple(TolerancePoint(*map(float, row)) for row in plain["table"]),
            last=_layers(plain.get("last", [])),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise RouterError(f"{path}: metadata cost is {text!r:.80}, not what first_cpp writes there: {error!r}") from None


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _layers(values: list[object]) -> tuple[int, ...]:
    return tuple(_whole(value) for value in values)
