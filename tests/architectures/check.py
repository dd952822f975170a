"""Checks one architecture: a tiny model of it without some layers against stock llama.cpp running what that must equal."""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import llama_cpp
import numpy as np
from helpers import logits, run_tokens, tokens

from first_cpp import Llama
from first_cpp.errors import FirstCppError
from first_cpp.gguf.pruned import write_pruned

from .shapes import N_CTX, N_VOCAB, SETTINGS, UNPRUNABLE, hyperparameters
from .tensors import ModelRefused
from .write import uniform, write_tiny, write_zeroed

EXACT = 1e-9
"""Below: the same sums, at most rounded differently."""
EFFECT = 1e-6
"""A layer whose absence changes less than this proves nothing."""
_MASKED = 1e30  # logits of tokens that a model never gives

# The prompt takes two micro-batches, one of them without outputs, and is longer than the sliding window.
PROMPT, ANSWER = tokens(21, n_vocab=N_VOCAB), tokens(4, seed=1, n_vocab=N_VOCAB)
_SETTINGS = {"n_ctx": N_CTX, "n_batch": 64, "n_ubatch": 16, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
# A restored state may lie in other cells, which are summed in another order; a cache in F16 would make that visible.
_SETTINGS |= {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}


class Wrong(Exception):
    """A layer left out is not what it must be, or the test would not notice."""


@dataclass(frozen=True)
class Result:
    """What a check found."""

    architecture: str
    outcome: str
    """exact, dense (no layer can be left out, first_cpp says so), not run (no such model), or wrong."""
    why: str = ""
    skippable: int = 0
    n_layer: int = 0
    memory: str = ""
    oracle: str = ""
    error: float = 0.0
    """The largest normalised mean square error of the logits."""


def check(architecture: str, folder: pathlib.Path) -> Result:
    """Check `architecture` with model files in `folder`."""
    model = folder / f"{architecture}.gguf"
    try:
        write_tiny(model, architecture)
    except ModelRefused as refused:
        return Result(architecture, "not run", str(refused))
    settings = _SETTINGS | SETTINGS.get(architecture, {})
    drop, keep = (Llama(model, skip=None, kv=kv, **settings) for kv in ("drop", "keep"))
    trouble = drop.unskippable
    possible = [layer for layer, why in enumerate(trouble) if not why]
    told = {"n_layer": len(trouble), "skippable": len(possible), "memory": _memory(drop)}
    if not _evaluates_tokens(drop):
        return Result(architecture, "dense", _reasons("", trouble), **told)
    prune = architecture not in UNPRUNABLE and uniform(model, hyperparameters(architecture))
    bench = _Bench(model, settings, prune)
    try:
        bench.check_dense(drop)
        if not possible:
            return Result(architecture, "dense", _reasons("", trouble), **told)
        for layers in _sets(possible):
            bench.check_layers(layers, drop, keep)
    except (Wrong, FirstCppError) as wrong:
        return Result(architecture, "wrong", str(wrong), **told)
    why = _reasons("", trouble)
    if keep.unskippable != trouble:
        why = "; ".join(filter(None, [why, _reasons("with kv='keep' ", keep.unskippable)]))
    oracle = "pruned file, zeroed layer" if bench.pruned_agrees else "zeroed layer"
    return Result(architecture, "exact", why, oracle=oracle, error=bench.error, **told)


def _reasons(where: str, trouble: tuple[str, ...]) -> str:
    """Which layers stay and why: 'layers 0, 2: ...; layer 3: ...'."""
    if len(set(trouble)) == 1:
        return where + trouble[0]
    layers: dict[str, list[str]] = {}
    for layer, why in enumerate(trouble):
        if why:
            layers.setdefault(why, []).append(str(layer))
    return "; ".join(f"{where}layer{'s' * (len(n) > 1)} {', '.join(n)}: {why}" for why, n in layers.items())


def _evaluates_tokens(llm: Llama) -> bool:
    """Whether the base class can evaluate tokens: it refuses models without memory, and encodes nothing for a decoder."""
    return llm._ctx.memory is not None and not llama_cpp.llama_model_has_encoder(llm._model.model)


def _memory(llm: Llama) -> str:
    if llm._ctx.memory is None:
        return "none"
    return "recurrent" if llm._is_recurrent else "hybrid" if llm._is_hybrid else "kv"


class _Bench:
    """What one model without some layers is compared with: stock llama.cpp."""

    def __init__(self, model: pathlib.Path, settings: dict[str, object], prune: bool) -> None:
        self._model, self._settings, self._prune = model, settings, prune
        self.error = 0.0
        self.pruned_agrees = prune
        self._dense = self._open(model)
        self._dense_logits = run_tokens(self._dense, PROMPT, ANSWER)
        self._dense.reset()
        self._dense.eval(PROMPT)
        self._after_prompt = self._dense.save_state()

    def _open(self, model: pathlib.Path) -> llama_cpp.Llama:
        return llama_cpp.Llama(str(model), **self._settings)

    def check_dense(self, llm: Llama) -> None:
        """With nothing left out, the logits are stock llama.cpp's."""
        if not np.isfinite(self._dense_logits).all():
            raise Wrong("the logits are not finite")
        if not np.array_equal(run_tokens(llm, PROMPT, ANSWER), self._dense_logits):
            raise Wrong("with nothing left out the logits are not those of stock llama.cpp")

    def check_layers(self, layers: list[int], drop: Llama, keep: Llama) -> None:
        """Without `layers` from the first token on, and from the first token of the answer on."""
        whole, answer = self._zeroed(layers)
        if (effect := _difference(self._dense_logits, whole)) < EFFECT:
            raise Wrong(f"layers {layers} matter too little: {effect:.1e}")
        if self._prune:
            self.pruned_agrees &= _difference(self._pruned(layers), whole) < EXACT
        able = {kv: llm for kv, llm in (("drop", drop), ("keep", keep)) if not any(llm.unskippable[il] for il in layers)}
        found = {kv: (_run_whole(llm, layers), _run_answer(llm, layers)) for kv, llm in able.items()}
        for kv, (whole_found, answer_found) in found.items():
            self._compare(f"without layers {layers}, kv={kv!r}", whole_found, whole)
            self._compare(f"decoding without layers {layers}, kv={kv!r}", answer_found, answer)
        if "keep" in found and not all(map(np.array_equal, found["drop"], found["keep"])):
            raise Wrong(f"without layers {layers}, kv='drop' and kv='keep' differ")

    def _compare(self, what: str, found: np.ndarray, expected: np.ndarray) -> None:
        error = _difference(found, expected)
        self.error = max(self.error, error)
        if not error < EXACT:
            raise Wrong(f"{what}: the error is {error:.1e}")

    def _zeroed(self, layers: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Logits of the file in which `layers` add nothing: alone, and after the unchanged file has read the prompt."""
        zeroed = self._model.with_suffix(".zeroed.gguf")
        write_zeroed(self._model, zeroed, self._model.stem, layers)
        llm = self._open(zeroed)
        whole = run_tokens(llm, PROMPT, ANSWER)
        llm.load_state(self._after_prompt)
        answer = _run_tokens(llm, ANSWER)
        llm.close()
        return whole, answer

    def _pruned(self, layers: list[int]) -> np.ndarray:
        pruned = self._model.with_suffix(".pruned.gguf")
        write_pruned(str(self._model), str(pruned), layers)
        llm = self._open(pruned)
        whole = run_tokens(llm, PROMPT, ANSWER)
        llm.close()
        return whole


def _run_whole(llm: Llama, layers: list[int]) -> np.ndarray:
    llm.reset()
    with llm.skipping(layers):
        return run_tokens(llm, PROMPT, ANSWER)


def _run_answer(llm: Llama, layers: list[int]) -> np.ndarray:
    llm.reset()
    llm.eval(PROMPT)
    with llm.skipping(layers):
        return _run_tokens(llm, ANSWER)


def _run_tokens(llm: llama_cpp.Llama, answer: list[int]) -> np.ndarray:
    """Evaluate token by token; the logits after each."""
    rows = []
    for token in answer:
        llm.eval([token])
        rows.append(logits(llm))
    return np.concatenate(rows)


def _sets(possible: list[int]) -> Iterator[list[int]]:
    yield from ([layer] for layer in possible)
    if len(possible) > 2:
        yield [possible[0], possible[-1]]
        yield possible[1:3]


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The mean square difference over the mean square of what is expected; both leave the same logits masked."""
    masked = np.abs(expected) > _MASKED
    if not np.array_equal(np.abs(found) > _MASKED, masked):
        return np.inf
    exact = expected[~masked].astype(np.float64)
    return float(np.mean((found[~masked] - exact) ** 2) / np.mean(exact**2))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as _folder:
        print(json.dumps(asdict(check(sys.argv[1], pathlib.Path(_folder)))))
