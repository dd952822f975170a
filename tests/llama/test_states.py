"""Any sequence of what a program does with a `Llama`: after each step the next greedy answer is a fresh model's."""

from __future__ import annotations

import hypothesis.strategies as st
import llama_cpp
import numpy as np
import pytest
from helpers import logits, tokens
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from routers_files import budget_routers, routed_model
from second_turn import CLOSE

from first_cpp import AnswerCancelled, Llama
from first_cpp.gguf.embed import embed

SKIPS = st.sampled_from([None, "auto", 0, 0.17, 0.34, 0.5, (0,), (2, 3), (0, 5), (1, 2, 3, 4)])
CONTEXTS = st.sampled_from(
    [
        {},
        {"flash_attn": True},
        {"n_batch": 16, "n_ubatch": 5},
        {"kv": "keep"},
        {"release_kv": True},
        {"prefill": "routed", "route_tokens": 9},
    ]
)
SMALL = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1}
PROMPTS = st.builds(tokens, st.integers(1, 40), st.integers(0, 5))


def setting(skip):
    return list(skip) if isinstance(skip, tuple) else skip


class Stop(Exception):
    """Raised by a stopping criterion or a logits processor."""


class LlamaStates(RuleBasedStateMachine):
    model: str

    def __init__(self):
        super().__init__()
        self.llm: Llama | None = None
        self.states: list = []
        self.suspended: list = []
        self.transcript: list[int] = [1]

    @initialize(context=CONTEXTS, skip=SKIPS)
    def load(self, context, skip):
        self.context = context
        self.llm = Llama(self.model, skip=setting(skip), verbose=False, **SMALL, **context)
        self.skip = skip

    def teardown(self):
        if self.llm is not None:
            self.llm.close()

    def continued(self, more):
        """The transcript so far with more, short enough for the context."""
        return [*self.transcript[-200:], *more]

    @rule(prompt=PROMPTS, n=st.integers(0, 12))
    def answer(self, prompt, n):
        made = self.llm.generate(prompt, temp=0.0)
        self.transcript = prompt + [next(made) for _ in range(n)]
        made.close()

    @rule(more=PROMPTS, n=st.integers(1, 8))
    def second_turn(self, more, n):
        self.answer(self.continued(more), n)

    @rule(n=st.integers(1, 5), prompt=PROMPTS)
    def abandon(self, n, prompt):
        made = self.llm.generate(prompt, temp=0.7)
        for _ in range(n):
            next(made)
        self.suspended.append(made)

    @rule(prompt=PROMPTS, after=st.integers(1, 4))
    def raise_from_a_criterion(self, prompt, after):
        def criterion(ids, scores):
            if len(ids) >= len(prompt) + after:
                raise Stop
            return False

        with pytest.raises(Stop):
            for _ in self.llm.generate(prompt, temp=0.0, stopping_criteria=criterion):
                pass

    @rule(prompt=PROMPTS, after=st.integers(0, 3))
    def cancel(self, prompt, after):
        made = self.llm.generate(prompt, temp=0.0)
        for _ in range(after):
            next(made)
        self.llm.cancel()
        if after:
            with pytest.raises(AnswerCancelled):
                next(made)

    @rule(prompt=PROMPTS)
    def eval_alone(self, prompt):
        if self.llm.n_tokens + len(prompt) < 400:
            self.llm.eval(prompt)

    @rule(layers=st.sampled_from([(1,), (0, 4), (5,)]), prompt=PROMPTS)
    def leave_out(self, layers, prompt):
        with self.llm.skipping(layers):
            next(self.llm.generate(prompt, temp=0.0))

    @rule(skip=SKIPS)
    def turn_the_dial(self, skip):
        self.skip = skip
        self.llm.skip = setting(skip)

    @rule()
    def save(self):
        self.states.append(self.llm.save_state())

    @rule(which=st.integers(0, 9))
    def restore(self, which):
        if self.states:
            self.llm.load_state(self.states[which % len(self.states)])

    @rule()
    def reset(self):
        self.llm.reset()

    @rule(bad=st.sampled_from([[99999], [-5], [5] * 600]))
    def refuse(self, bad):
        with pytest.raises((RuntimeError, ValueError)):
            self.llm.eval(bad)
        with pytest.raises((RuntimeError, ValueError)):
            next(self.llm.generate(bad, temp=0.0))

    @rule(prompt=PROMPTS)
    def hidden_states(self, prompt):
        self.llm.hidden_states(prompt)

    @rule(prompt=PROMPTS, turn=st.booleans())
    def compare(self, prompt, turn):
        """What everything else must not disturb, on a new prompt or on the next turn of the last one."""
        prompt = self.continued(prompt) if turn else prompt
        fresh = Llama(self.model, skip=setting(self.skip), verbose=False, **SMALL, **self.context)
        try:
            same_answer(self.llm, fresh, prompt)
        finally:
            fresh.close()


def same_answer(llm, fresh, prompt):
    """The same decision, logits that differ by rounding alone, and the same greedy tokens up to a near tie."""
    # with flash attention stock's own second turns differ from fresh ones by as much as 0.031 on this model, without by 0.001
    flash = llm.context_params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    close = 2 * CLOSE if flash else CLOSE
    made, expected = llm.generate(prompt, temp=0.0), fresh.generate(prompt, temp=0.0)
    for step in range(5):
        token, wanted = next(made), next(expected)
        if step == 0:
            if llm.routers.kind == "sets" and llm.routing.skipped != fresh.routing.skipped:
                more = llm.routing.level - fresh.routing.level  # which cost about as much as is accepted
                assert llm.routing.cost - fresh.routing.cost == pytest.approx(llm.tolerance * more, rel=CLOSE, abs=CLOSE)
                break
            assert len(llm.routing.skipped) == len(fresh.routing.skipped)
            if fresh.routing.keep is not None:
                np.testing.assert_allclose(llm.routing.keep, fresh.routing.keep, rtol=0, atol=CLOSE / 10)
            if llm.routing.skipped != fresh.routing.skipped:
                bounds = [max(llm.routing.keep[i] for i in set(r.skipped)) for r in (llm.routing, fresh.routing)]
                assert abs(bounds[0] - bounds[1]) < CLOSE / 10  # two layers that are as good as each other
                break
        row, fresh_row = logits(llm)[0], logits(fresh)[0]
        np.testing.assert_allclose(row, fresh_row, rtol=0, atol=close)
        if token != wanted:
            assert fresh_row.max() - fresh_row[token] < 2 * close
            break
    made.close()
    expected.close()


def machine(model):
    return type("Machine", (LlamaStates,), {"model": model})


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=11)


UNHURRIED = {"deadline": None, "suppress_health_check": list(HealthCheck)}


LENGTHS = pytest.mark.parametrize(("n", "steps"), [(8, 20), pytest.param(400, 40, marks=pytest.mark.slow)], ids=["few", "many"])


@LENGTHS
def test_every_answer_is_a_fresh_models(routed, n, steps):
    run_state_machine_as_test(machine(routed), settings=settings(max_examples=n, stateful_step_count=steps, **UNHURRIED))


@LENGTHS
def test_every_answer_with_a_budget_is_a_fresh_models(tiny, tmp_path, n, steps):
    path = str(tmp_path / "budget.gguf")
    embed(budget_routers(tiny, scale=0.03), tiny, path, quiet=True)
    run_state_machine_as_test(machine(path), settings=settings(max_examples=n, stateful_step_count=steps, **UNHURRIED))
