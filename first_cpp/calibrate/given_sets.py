"""The sets of layers of an earlier calibrated file: kept where a LoRA has learned exactly those."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from ..errors import MissingFileError, OptionError
from ..gguf.cost_probes import CostProbes, LayerSet
from ..gguf.model_file import ModelFile
from ..gguf.router_format import load_routers
from ..gguf.routers import check_base

MOST_SETS = 3
"""Of a level: the one for all prompts, and those of groups."""


def read_given(path: str, model: ModelFile) -> CostProbes:
    """The sets of a calibrated file, to be kept for a model, with the order of its layers.

    Raises MissingFileError, OptionError for a file without such sets, RouterError for one of another model.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f"--sets: there is no file {path}")
    routers = load_routers(path)
    if routers.kind != "sets" or (cost := routers.cost) is None:
        raise OptionError(f"--sets {path} has no sets of layers; `first-cpp calibrate` without --sets finds some")
    check_base(routers, model.base, path)
    most = max(len(cost.of_level(level)) for level in cost.levels)
    if cost.levels != tuple(range(1, len(cost.levels) + 1)) or most > MOST_SETS:
        raise OptionError(
            f"--sets {path} has levels {', '.join(map(str, cost.levels))} with up to {most} sets each; "
            f"allowed: every level from 1 on, with at most {MOST_SETS} sets, as `first-cpp calibrate` writes them"
        )
    return cost


def by_kind(sets: Sequence[LayerSet], kinds: Sequence[str]) -> dict[str, list[frozenset[int]]]:
    """The sets by kind, one for each level: the j-th of a level is of the j-th kind, or its first where it has no more.

    >>> found = by_kind([LayerSet(1, (4,)), LayerSet(1, (2,)), LayerSet(2, (2, 4))], ["all", "own", "other"])
    >>> {kind: [sorted(layers) for layers in of_levels] for kind, of_levels in found.items()}
    {'all': [[4], [2, 4]], 'own': [[2], [2, 4]]}
    """
    levels: dict[int, list[frozenset[int]]] = {}
    for one in sets:
        levels.setdefault(one.level, []).append(frozenset(one.layers))
    most = max(map(len, levels.values()), default=0)
    return {kind: [of[j] if j < len(of) else of[0] for of in levels.values()] for j, kind in enumerate(kinds[:most])}


def numbered(sets: Sequence[LayerSet]) -> list[tuple[int, int, LayerSet]]:
    """Level, number of the kind and layers of each set, all of them: also where more than a level's first hardly pays.

    >>> [kind for _, kind, _ in numbered([LayerSet(1, (4,)), LayerSet(1, (2,)), LayerSet(2, (2, 4))])]
    [0, 1, 0]
    """
    seen, found = Counter[int](), []
    for one in sets:
        found.append((one.level, seen[one.level], one))
        seen[one.level] += 1
    return found
