"""Costs of sets of layers on dense answers: measured once each, kept, and saved so that a stopped run goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from ..gguf.new_file import new_file
from .answer_costs import NOTHING, AnswerCosts
from .cost import KL, Floats
from .engine import Engine
from .first_pass import Answered

SAVE_EVERY = 20.0
"""Seconds between two saved states."""

Key = tuple[int, frozenset[int]]
"""Answer tokens looked at, and the layers skipped."""


class CostStore:
    """What was found so far: the dense answers, and the costs of sets of layers on them.

    path: where it is saved; identity: what it depends on. A file of another identity is not used, `stale` says so. started: on
    the monotonic clock, from when on time counts; from now on by default.
    """

    def __init__(self, path: str, identity: dict[str, Any], n_prompts: int, started: float | None = None) -> None:
        self.path, self.identity = path, json.dumps(identity, sort_keys=True)
        self.answered: dict[int, Answered] = {}
        self.costs: dict[Key, Floats] = {}
        """For each set a cost for each prompt, float32 [n_prompts, 3], NaN where not measured."""
        self.influence: list[float] = []
        self.seconds = 0.0
        """Spent by runs before this one."""
        self.stale = False
        self._n_prompts = n_prompts
        self._saved = time.monotonic()
        self._started = self._saved if started is None else started
        if os.path.exists(path):
            self._load()

    def cost(self, key: Key, prompt: int) -> Floats | None:
        """A cost that was measured, None otherwise."""
        row = self.costs.get(key)
        return None if row is None or np.isnan(row[prompt, KL]) else row[prompt]

    def add(self, key: Key, prompt: int, cost: Floats) -> None:
        """Keep a cost; saves from time to time."""
        if key not in self.costs:
            self.costs[key] = np.full((self._n_prompts, 3), np.nan, np.float32)
        self.costs[key][prompt] = cost
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    @property
    def elapsed(self) -> float:
        """Seconds spent, earlier runs included."""
        return self.seconds + time.monotonic() - self._started

    def evaluated_tokens(self) -> int:
        """Of answers, over all sets of layers that were tried on them."""
        lengths = np.zeros(self._n_prompts, np.int64)
        for number, one in self.answered.items():
            lengths[number] = len(one.answer)
        return sum(int(np.minimum(lengths, n)[~np.isnan(costs[:, KL])].sum()) for (n, _), costs in self.costs.items())

    def save(self) -> None:
        """Write everything to `path`."""
        numbers = sorted(self.answered)
        metadata = {
            "identity": self.identity,
            "seconds": repr(self.elapsed),
            "influence": json.dumps(self.influence),
            "answers": json.dumps([(number, self.answered[number].prompt, self.answered[number].answer) for number in numbers]),
            "sets": json.dumps([(n, sorted(layers)) for n, layers in self.costs]),
        }
        tensors = {}
        if numbers:
            tensors["read"] = np.stack([self.answered[number].read for number in numbers])
        if self.costs:
            tensors["costs"] = np.stack(list(self.costs.values()))
        with new_file(self.path) as file:
            file.write(save(tensors, metadata=metadata))
        self._saved = time.monotonic()

    def _load(self) -> None:
        with safe_open(self.path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("identity") != self.identity:
                self.stale = True
                return
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.seconds = float(metadata["seconds"])
        self.influence = json.loads(metadata["influence"])
        for i, (number, prompt, answer) in enumerate(json.loads(metadata["answers"])):
            self.answered[number] = Answered(prompt, tensors["read"][i], answer)
        for i, (n, layers) in enumerate(json.loads(metadata["sets"])):
            self.costs[n, frozenset(layers)] = tensors["costs"][i]


class Measure:
    """Measures what is not known yet. Sessions are kept until `forget`: each holds a prompt's state and dense distributions."""

    def __init__(self, engine: Engine, store: CostStore) -> None:
        self.engine, self.store = engine, store
        self._sessions: dict[tuple[int, int], AnswerCosts] = {}

    def cost(self, skipped: frozenset[int], prompt: int, n_tokens: int, base: frozenset[int] = NOTHING) -> Floats:
        """Cost of skipping `skipped` on the first `n_tokens` of a prompt's answer, float32 [3]; quicker from a `base` in it."""
        key = n_tokens, skipped
        known = self.store.cost(key, prompt)
        if known is None:
            known = self.session(prompt, n_tokens).cost(skipped, base)
            self.store.add(key, prompt, known)
        return known

    def base_cost(self, base: frozenset[int], prompt: int, n_tokens: int) -> Floats:
        """Cost of skipping `base`, from which others will be tried."""
        known = self.store.cost((n_tokens, base), prompt)
        if known is None:
            known = self.session(prompt, n_tokens).rebase(base)
            self.store.add((n_tokens, base), prompt, known)
        return known

    def session(self, prompt: int, n_tokens: int) -> AnswerCosts:
        """The session of a prompt's answer."""
        if (prompt, n_tokens) not in self._sessions:
            one = self.store.answered[prompt]
            found = self._sessions[prompt, n_tokens] = AnswerCosts(self.engine, one.prompt, one.answer[:n_tokens])
            self.store.add((n_tokens, NOTHING), prompt, found.dense)
        return self._sessions[prompt, n_tokens]

    def forget(self) -> None:
        """Give the sessions' memory back."""
        self._sessions.clear()


class Searched:
    """The `Skipping` of a search over some prompts: what `runtime.layer_search.removal_order` asks.

    weights: what each prompt's KL counts, float64 [n_examples]; alike by default.
    """

    def __init__(
        self, measure: Measure, prompts: Sequence[int], n_tokens: int, weights: npt.NDArray[np.float64] | None = None
    ) -> None:
        self._measure, self._prompts, self._n_tokens = measure, list(prompts), n_tokens
        self.n_examples = len(self._prompts)
        self._weights = np.ones(self.n_examples) if weights is None else weights
        self.skipped = NOTHING

    def cost(self, n: int) -> npt.NDArray[np.float64]:
        """Weighted KL of the first `n` prompts with the layers skipped so far, float64 [n]."""
        return self.kl(n) * self._weights[:n]

    def kl(self, n: int) -> npt.NDArray[np.float64]:
        """KL of the first `n` prompts with the layers skipped so far, float64 [n]."""
        if not self.skipped:
            return np.zeros(n)
        costs = [self._measure.base_cost(self.skipped, prompt, self._n_tokens)[KL] for prompt in self._prompts[:n]]
        return np.array(costs, np.float64)

    def without(self, layer: int, n: int) -> npt.NDArray[np.float64]:
        """Weighted KL of the first `n` prompts with one more layer skipped, float64 [n]."""
        skipped = self.skipped | {layer}
        costs = [self._measure.cost(skipped, prompt, self._n_tokens, self.skipped)[KL] for prompt in self._prompts[:n]]
        return np.array(costs, np.float64) * self._weights[:n]

    def skip(self, layer: int) -> None:
        """Skip one more layer from now on."""
        self.skipped |= {layer}
