"""The rows of an evaluation: a model file and what it skips, the routed ones among their baselines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import FirstCppError, MissingFileError, OptionError
from ..gguf.cost_probes import CostProbes
from ..gguf.model_file import ModelFile, open_gguf, weights_fingerprint
from ..gguf.router_format import load_routers, read_routers, trained_set
from ..skip import FIXED, Skip, check_layers, fixed_layers, layers_for_share, skip_from_text

Influence = Callable[[str, str | None], Sequence[int]]
"""All layers of a model file, beside it a side file or None, from the least block influence up."""
BASE, DENSE, ROUTED, BUDGET, AUTO = "base", "dense", "routed", "budget", "auto"


class RowError(FirstCppError, ValueError):
    """A row that cannot be evaluated."""


@dataclass(frozen=True)
class Row:
    """One system that answers all questions.

    name: unique. share: asked for, on average where each prompt has its own. skip: as `Llama` takes it. file: the GGUF.
    routers: a side file. tolerance: with skip "auto", None for the file's. same_vocabulary: as the dense row's model, so that
    tokens and their distributions can be compared.

    >>> Row("even@0.25", "model.gguf", 0.25, (2, 4)).system
    'even'
    """

    name: str
    file: str
    share: float
    skip: Skip
    routers: str | None = None
    tolerance: float | None = None
    same_vocabulary: bool = True

    @property
    def system(self) -> str:
        """The name without the share."""
        return self.name.split("@", 1)[0]

    def identity(self) -> list[Any]:
        """What answers depend on: the files' fingerprints and what is skipped, fit for JSON."""
        skip = list(self.skip) if isinstance(self.skip, tuple) else self.skip
        found = [weights_fingerprint(self.file), weights_fingerprint(self.routers) if self.routers else None, skip]
        return found if self.tolerance is None else [*found, self.tolerance]


def needs_scores(row: Row) -> bool:
    """Whether each prompt chooses what a row skips."""
    return isinstance(row.skip, float) or row.skip == "auto"


@dataclass(frozen=True)
class RowPlan:
    """What a command line asks for.

    model: the GGUF; routers: a side file for it; base: the model as it came, where the LoRA is folded into `model`. shares: to
    skip; auto: whether to let each prompt choose, too. baselines: kinds of fixed sets at the same shares. given: rows as typed.
    influence: called with a model file and a side file for an order of all layers, from the least block influence up. seed: of
    the random baseline.
    """

    model: str
    routers: str | None
    base: str | None
    shares: Sequence[float]
    baselines: Sequence[str]
    given: Sequence[str]
    influence: Influence
    seed: int
    auto: bool = False

    def rows(self) -> list[Row]:
        """The model as it came, dense, routed at each share with its baselines, and the rows given. Where the file has cost
        probes, each share also as the mean of what the prompts can spare.

        Raises OptionError, RowError, MissingFileError, or SkipError for layers or shares that the model does not have.
        """
        n_layer = ModelFile.open(self.model).n_layer
        if unknown := [name for name in self.baselines if name not in FIXED]:
            raise OptionError(f"--baselines: {unknown[0]!r} is unknown; allowed: {', '.join(FIXED)}, all or none")
        found = [Row(BASE, self.base, 0.0, None)] if self.base else []
        found.append(Row(DENSE, self.model, 0.0, None, self.routers))
        cost = cost_probes_of(self.routers or self.model) if self.auto or any(self.shares) else None
        shares = {f"{share:g}": share for share in self.shares if share > 0}  # by what rows are named after
        for share in shares.values():
            layers_for_share(share, n_layer)  # raises when none would stay
            found.append(Row(f"{ROUTED}@{share:g}", self.model, share, share, self.routers))
            if cost is not None and (tolerance := cost.tolerance_for(share)) is not None:
                found.append(Row(f"{BUDGET}@{share:g}", self.model, share, "auto", self.routers, tolerance))
            for name in self.baselines:
                order = self.influence(self.model, self.routers) if name == "influence" else ()
                layers = fixed_layers(name, share, n_layer, order, self.seed)
                found.append(Row(f"{name}@{share:g}", self.model, share, layers, self.routers))
        if self.auto:
            found.append(Row(AUTO, self.model, auto_share(self.routers or self.model), "auto", self.routers))
        for row in [parse_row(text, self.influence, self.seed) for text in self.given]:
            if isinstance(row.skip, float) and row.skip:
                load_routers(row.file)  # raises where there are none that choose the share's layers
            if row.name in [other.name for other in found]:
                raise OptionError(f"--row {row.name}: there is a row of this name already")
            found.append(row)
        own = vocabulary(self.model)
        others = {file for file in {row.file for row in found} - {self.model} if vocabulary(file) != own}
        return [replace(row, same_vocabulary=row.file not in others) for row in found]


def vocabulary(path: str) -> list[bytes]:
    """The tokens of a model, by number; none where it has no vocabulary, which loading it says."""
    file, key = open_gguf(path), "tokenizer.ggml.tokens"
    return list(file.get(key)) if file.kind(key) == "arr[str]" else []


def check_comparable(rows: Sequence[Row], by_fidelity: Sequence[str]) -> None:
    """Raise RowError for a row whose fidelity to the dense row cannot be measured, where tasks are scored by it."""
    for row in rows:
        if by_fidelity and not row.same_vocabulary:
            raise RowError(
                f"row {row.name}: {row.file} has another vocabulary than --model, so its fidelity cannot be measured, by which "
                f"task {by_fidelity[0]!r} is scored; leave the row out, or score the task by references (--metric)"
            )


def parse_row(text: str, influence: Influence, seed: int = 0) -> Row:
    """A row as typed: NAME=FILE and perhaps @auto, @0.25, @7,11, @budget:0.25 or @even:0.25, a set of `skip.fixed_layers`.

    A budget is the tolerance of the file's cost probes that skips the share on average. A set of the kind that a LoRA was
    trained for is the one it was trained for. influence: called for an order of all layers where the file names none. Raises
    MissingFileError, RowError, or SkipError for layers or shares that the model does not have.

    >>> parse_row("fixed=model.gguf@4,1", lambda model, routers: ()).skip
    (1, 4)
    """
    name, sign, rest = text.partition("=")
    file, skip_text = _file_and_skip(rest)
    if not name or not sign or not file or "@" in name:
        raise RowError(f"--row {text!r} is not NAME=FILE or NAME=FILE@SKIP")
    if not os.path.isfile(file):
        raise MissingFileError(f"--row {name}: there is no file {file}")
    n_layer = ModelFile.open(file).n_layer
    kind, colon, share_text = skip_text.partition(":")
    if colon:
        share = skip_from_text(share_text)
        if not isinstance(share, float):
            raise RowError(f"--row {text!r}: after {kind}: give a share of layers, like 0.25")
        if kind == BUDGET:
            return Row(f"{name}@{share:g}", file, share, "auto", None, _tolerance(file, share, n_layer))
        return Row(f"{name}@{share:g}", file, share, _set(file, kind, share, n_layer, influence, seed))
    skip = skip_from_text(skip_text or "none")
    if skip == "auto":
        return Row(f"{name}@auto", file, auto_share(file), "auto")
    check_layers(skip if isinstance(skip, tuple) else (), n_layer)
    if isinstance(skip, tuple):
        return Row(f"{name}@{len(skip)}/{n_layer}", file, len(skip) / n_layer, skip)
    return Row(f"{name}@{skip_text}" if skip_text else name, file, skip or 0.0, skip)


def _file_and_skip(text: str) -> tuple[str, str]:
    """FILE and SKIP of FILE or FILE@SKIP; a path may have an @ too."""
    if os.path.isfile(text) or "@" not in text:
        return text, ""
    file, _, skip = text.rpartition("@")
    return file, skip


def _tolerance(file: str, share: float, n_layer: int) -> float:
    """The tolerance that skips this share of a file's layers on average."""
    layers_for_share(share, n_layer)  # raises when none would stay
    cost = cost_probes_of(file)
    tolerance = None if cost is None else cost.tolerance_for(share)
    if tolerance is None:
        raise RowError(f"{file} has no cost probes (first-cpp calibrate) that skip so much; a budget of {share:g} needs them")
    return tolerance


def _set(file: str, kind: str, share: float, n_layer: int, influence: Influence, seed: int) -> tuple[int, ...]:
    """The fixed set of layers that a row of this kind skips."""
    trained = trained_set(read_routers(open_gguf(file), file), kind, n_layer, file)
    if trained is not None:
        return fixed_layers(kind, share, n_layer, *trained)
    if kind in ("search", "given"):
        raise RowError(
            f"{file} was not trained with layers of the kind {kind!r} (first-cpp train --layers); give layers instead"
        )
    return fixed_layers(kind, share, n_layer, influence(file, None) if kind == "influence" else (), seed)


def cost_probes_of(path: str) -> CostProbes | None:
    """The cost probes of a model or side file, None where it has none."""
    routers = read_routers(open_gguf(path), path)
    return None if routers is None else routers.cost


def auto_share(path: str) -> float:
    """The mean share that "auto" skips with a file's routers, as its maker measured it; 0 without routers.

    >>> f"{auto_share('model-first.gguf'):.2f}"
    '0.34'
    """
    routers = read_routers(open_gguf(path), path)
    if routers is None:
        return 0.0
    return routers.skip if routers.cost is None else routers.cost.mean_share(routers.cost.tolerance)
