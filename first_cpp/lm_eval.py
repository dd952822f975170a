"""A model of EleutherAI's lm-evaluation-harness: any of its tasks, on a `Llama`, dense and skipping layers.

    python -m first_cpp.lm_eval run --model first_cpp --model_args model=model-first.gguf,skip=0.25 --tasks TASK

is the harness's own command line with the model "first_cpp" added. What a task gives as context is a prompt, read with all
layers; the continuation that is scored, or generated, is decoded with the layers skipped that the prompt chose.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from .cli.execute import USAGE
from .cli.extras import need_extra
from .cli.model_options import ModelOptions
from .errors import MissingExtraError, OptionError
from .llama import Llama
from .runtime.chat_prompt import chat_text
from .runtime.teacher_forcing import token_log_probabilities
from .skip import skip_from_text

try:
    need_extra("first_cpp.lm_eval", "lm-eval", "lm_eval")
except MissingExtraError as error:
    if __name__ != "__main__":
        raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(USAGE)

from lm_eval import utils  # after the check that it is there
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


@register_model("first_cpp")
class FirstCppLM(TemplateLM):  # type: ignore[misc]
    """model: a `Llama`, or a name as `-m` takes them, None for the demo model. skip, tolerance, routers, n_ctx, threads: as in
    `Llama`, for a model that is loaded here; skip as on the command line too, layers with + between them ("7+11"), because the
    harness parts its arguments at commas. max_gen_toks: of answers whose task names no length.

    batch_size, max_batch_size and device are the harness's, which names a GPU unless it is told otherwise: whatever they are,
    one sequence at a time is decoded, on the CPU. Raises what loading a model raises.
    """

    def __init__(
        self,
        model: Llama | str | None = None,
        *,
        skip: Any = "auto",
        tolerance: float | None = None,
        routers: str | None = None,
        n_ctx: int | None = None,
        threads: int | None = None,
        offline: bool = False,
        max_gen_toks: int = 256,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, Llama):
            chosen = skip_from_text(skip.replace("+", ",")) if isinstance(skip, str) else skip
            model = ModelOptions(
                model, routers=routers, skip=chosen, tolerance=tolerance, ctx=n_ctx, threads=threads, offline=offline
            ).load()
        self.llama = model
        self.max_gen_toks = max_gen_toks

    # -- tokens ----------------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return int(self.llama.token_eos())

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, or EOS where the model has none."""
        bos = int(self.llama.token_bos())
        return bos if bos >= 0 else self.eot_token_id

    @property
    def max_length(self) -> int:
        """Tokens of context and continuation together."""
        return int(self.llama.n_ctx()) - 1

    @property
    def tokenizer_name(self) -> str:
        """Under which the harness keeps requests: the file that has the tokenizer."""
        return str(self.llama.model_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text, BOS first where the model wants one and the text has none itself."""
        found: list[int] = self.llama.tokenize(string.encode(), add_bos=add_special_tokens is not False, special=True)
        doubled = add_special_tokens is None and found[:2] == [self.llama.token_bos()] * 2
        return found[1:] if doubled else found

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of the model, which is the only one."""
        return str(self.llama.metadata.get("tokenizer.chat_template", "")) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation, by the model's own template. Raises OptionError where it has none."""
        try:
            return chat_text(self.llama, chat_history, add_generation_prompt)
        except ValueError as error:
            raise OptionError(f"--apply_chat_template: {error}") from error

    # -- what tasks ask --------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Of each request, in an order in which contexts that begin alike follow one another and are read once."""
        found: dict[int, tuple[float, bool]] = {}
        order = sorted(range(len(requests)), key=lambda i: requests[i][1:])
        for i in _progress(order, "scoring", disable_tqdm):
            texts, context, continuation = requests[i]
            found[i] = self._score(context, continuation)
            self.cache_hook.add_partial("loglikelihood", texts, found[i])
        return [found[i] for i in range(len(requests))]

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Log-likelihood in nats, and whether it is the greedy answer. A context that is too long loses its beginning."""
        if len(continuation) >= self.max_length:
            raise OptionError(f"a continuation of {len(continuation)} tokens: the context has {self.max_length}; give n_ctx=")
        kept = context[max(0, len(context) + len(continuation) - self.max_length) :]
        values, first = token_log_probabilities(self.llama, kept, continuation)
        return float(values.sum()), bool(first.all())

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of the context; what stands before a window is its prompt."""
        found = []
        for request in _progress(requests, "scoring texts", disable_tqdm):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length - 1, 1)
            total = sum(self._score(*utils.make_disjoint_window(window))[0] for window in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            found.append(total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, greedy unless their task samples; each ends before the first of its `until` texts."""
        found = []
        for request in _progress(requests, "answering", disable_tqdm):
            context, settings = request.args
            found.append(self._answer(context, dict(settings)))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _answer(self, context: str, settings: dict[str, Any]) -> str:
        until = settings.pop("until", None) or []
        n_tokens = int(settings.pop("max_gen_toks", self.max_gen_toks))
        sampled = bool(settings.pop("do_sample", False))
        sampling = {name: settings.pop(name) for name in _SAMPLING if name in settings}
        if settings:
            raise OptionError(f"generation_kwargs: {', '.join(settings)} cannot be honoured; there are until, max_gen_toks, "
                              f"do_sample, {', '.join(_SAMPLING)}")  # fmt: skip
        tokens = self.tok_encode(context)
        room = self.max_length - n_tokens
        if room < 1:
            raise OptionError(f"max_gen_toks={n_tokens} leaves no room for a prompt in {self.max_length} tokens; give n_ctx=")
        stops = [one for one in ([until] if isinstance(until, str) else until) if one]
        answer = self.llama.create_completion(
            tokens[-room:],
            max_tokens=n_tokens,
            stop=stops,
            repeat_penalty=1.0,
            **(sampling if sampled else {"temperature": 0.0}),
        )
        return str(answer["choices"][0]["text"])


def _progress(items: Any, what: str, disable: bool) -> Any:
    """Items with a progress bar."""
    from tqdm import tqdm

    return tqdm(items, desc=what, disable=disable)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
