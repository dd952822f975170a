"""Costs of sets of layers on dense answers: measured once each, kept, and saved so that a stopped run goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import FirstCppError
from ..gguf.new_file import new_file
from ..streams.cost import KL, Floats
from ..streams.engine import Engine
from .answer_costs import NOTHING, AnswerCosts
from .first_pass import Answered, answer_all

SAVE_EVERY = 20.0
"""Seconds between two saved states, at least."""
MOST_SAVING = 0.02
"""The share of the time that saving may take: the state of a large model has hundreds of megabytes."""
MOST_HELD = 4 << 30
"""Bytes of sessions that are kept: a prompt of a thousand tokens takes some 100 MB of KV in a model of 8B."""

Wanted = tuple[int, Sequence[frozenset[int]]]
"""A prompt, and the sets of layers whose costs on it are wanted."""
Key = tuple[int, frozenset[int]]
"""Answer tokens looked at, and the layers skipped."""


class CalibrationError(FirstCppError, ValueError):
    """A model or prompts that nothing can be measured on, or a process of several that ended."""


class CostStore:
    """What was found so far: the dense answers, and the costs of sets of layers on them.

    path: where it is saved; identity: what it depends on. A file of another identity, or a damaged one, is not used, `stale`
    says so. started: on the monotonic clock, from when on time counts; from now on by default.
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
        self.n_prompts = n_prompts
        self._saved, self._pause = time.monotonic(), SAVE_EVERY
        self._started = self._saved if started is None else started
        if os.path.exists(path):
            try:
                self._load()
            except SafetensorError:
                self.stale = True

    def cost(self, key: Key, prompt: int) -> Floats | None:
        """A cost that was measured, None otherwise."""
        row = self.costs.get(key)
        return None if row is None or np.isnan(row[prompt, KL]) else row[prompt]

    def add(self, key: Key, prompt: int, cost: Floats) -> None:
        """Keep a cost; saves from time to time."""
        self.put(key, prompt, cost)
        if time.monotonic() - self._saved > self._pause:
            self.save()

    def put(self, key: Key, prompt: int, cost: Floats) -> None:
        """Keep a cost in memory."""
        if key not in self.costs:
            self.costs[key] = np.full((self.n_prompts, 3), np.nan, np.float32)
        self.costs[key][prompt] = cost

    @property
    def elapsed(self) -> float:
        """Seconds spent, earlier runs included."""
        return self.seconds + time.monotonic() - self._started

    def evaluated_tokens(self) -> int:
        """Of answers, over all sets of layers that were tried on them."""
        lengths = np.zeros(self.n_prompts, np.int64)
        for number, one in self.answered.items():
            lengths[number] = len(one.answer)
        return sum(int(np.minimum(lengths, n)[~np.isnan(costs[:, KL])].sum()) for (n, _), costs in self.costs.items())

    def save(self) -> None:
        """Write everything to `path`."""
        began = time.monotonic()
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
        self._pause = max(SAVE_EVERY, (self._saved - began) / MOST_SAVING)

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
    """Measures what is not known yet. Sessions are kept until `forget`, where memory suffices: each holds a prompt's state, its
    hidden states and dense distributions."""

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

    def costs(
        self, skipped: frozenset[int], prompts: Sequence[int], n_tokens: int, base: frozenset[int] = NOTHING
    ) -> list[Floats]:
        """`cost` of each prompt."""
        return [self.cost(skipped, prompt, n_tokens, base) for prompt in prompts]

    def base_costs(self, base: frozenset[int], prompts: Sequence[int], n_tokens: int) -> list[Floats]:
        """`base_cost` of each prompt."""
        return [self.base_cost(base, prompt, n_tokens) for prompt in prompts]

    def influences(self, prompts: Sequence[int], n_tokens: int) -> list[npt.NDArray[np.float64]]:
        """`AnswerCosts.influence` of each prompt; empty where there is none."""
        found = [self.session(prompt, n_tokens).influence for prompt in prompts]
        return [one for one in found if one is not None]

    def each(self, wanted: Iterable[Wanted], n_tokens: int) -> Iterator[int]:
        """Measure the sets that are wanted of each prompt; yields the prompts as they are done. Forgets all sessions."""
        for prompt, sets in wanted:
            self.whole(prompt, sets, n_tokens)
            yield prompt

    def whole(self, prompt: int, sets: Sequence[frozenset[int]], n_tokens: int) -> None:
        """Measure sets on one prompt, then forget all sessions."""
        for layers in sets:
            self.cost(layers, prompt, n_tokens)
        Measure.forget(self)

    @property
    def streams(self) -> int:
        """Answers that are decoded together."""
        return self.engine.streams

    def answers(
        self, chunks: Iterable[Sequence[int]], tokens: Sequence[list[int]], max_tokens: int, norm_eps: float
    ) -> Iterator[tuple[int, Answered]]:
        """The dense model's answers to the prompts, given by number in chunks; `tokens` of all prompts."""
        for chunk in chunks:
            yield from self._answers(chunk, [tokens[i] for i in chunk], max_tokens, norm_eps)

    def answer_chunk(
        self, chunk: Sequence[int], tokens: Sequence[list[int]], max_tokens: int, norm_eps: float
    ) -> list[tuple[int, Answered]]:
        """Of one chunk, when all are done; `tokens` of its prompts."""
        return list(self._answers(chunk, tokens, max_tokens, norm_eps))

    def _answers(
        self, chunk: Sequence[int], tokens: Sequence[list[int]], max_tokens: int, norm_eps: float
    ) -> Iterator[tuple[int, Answered]]:
        return ((chunk[i], one) for i, one in answer_all(self.engine, tokens, max_tokens, norm_eps))

    def pace(self, prompt: int, n_tokens: int, layers: Sequence[int]) -> float:
        """Seconds that trying a layer on a prompt takes, by these layers."""
        start = time.monotonic()
        session = self.session(prompt, n_tokens)
        for layer in layers:
            session.cost(frozenset({layer}))
        return (time.monotonic() - start) / (len(layers) + 2)  # the session itself read the prompt and the answer

    def session(self, prompt: int, n_tokens: int) -> AnswerCosts:
        """The session of a prompt's answer: the one that was kept, or a new one."""
        if (found := self._sessions.get((prompt, n_tokens))) is None:
            one = self.store.answered[prompt]
            found = AnswerCosts(self.engine, one.prompt, one.answer[:n_tokens])
            self.store.add((n_tokens, NOTHING), prompt, found.dense)
            if sum(kept.n_bytes for kept in self._sessions.values()) + found.n_bytes <= MOST_HELD:
                self._sessions[prompt, n_tokens] = found
        return found

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
        costs = self._measure.base_costs(self.skipped, self._prompts[:n], self._n_tokens)
        return np.array([cost[KL] for cost in costs], np.float64)

    def without(self, layer: int, n: int) -> npt.NDArray[np.float64]:
        """Weighted KL of the first `n` prompts with one more layer skipped, float64 [n]."""
        skipped = self.skipped | {layer}
        costs = self._measure.costs(skipped, self._prompts[:n], self._n_tokens, self.skipped)
        return np.array([cost[KL] for cost in costs], np.float64) * self._weights[:n]

    def skip(self, layer: int) -> None:
        """Skip one more layer from now on."""
        self.skipped |= {layer}
