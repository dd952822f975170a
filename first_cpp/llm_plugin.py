"""A plugin for the `llm` command and library (llm.datasette.io): first_cpp models beside its others.

    llm -m first-cpp "Name a colour." -o skip 0.25

serves the demo model with its everyday routers, or the file that the variable FIRST_CPP_MODEL names. In Python any loaded
`first_cpp.Llama` can be passed: `FirstCppModel("my-model", llama).prompt("...")`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import llm
from pydantic import Field

from .cli.answer_record import AnswerRecorder
from .cli.model_options import ModelOptions
from .cli.plain_chat import PlainChat, has_template
from .errors import MissingFileError
from .gguf.bundled import find_demo_model
from .llama import Llama
from .runtime.llama_log import ggml_levels
from .runtime.streaming import in_thread
from .skip import Skip, skip_from_text

VARIABLE = "FIRST_CPP_MODEL"


class FirstCppModel(llm.Model):  # type: ignore[misc]
    """One GGUF model: a path that is loaded with the first prompt, None for the demo model, or a `first_cpp.Llama`."""

    can_stream = True

    class Options(llm.Options):  # type: ignore[misc]
        skip: str | None = Field(default=None, description="layers to skip: auto, none, a share like 0.25, or 7,11")
        tolerance: float | None = Field(default=None, description="what one more skipped layer may cost, nats a token")
        max_tokens: int | None = Field(default=None, description="longest answer in tokens")
        temperature: float = Field(default=0.8, description="0 is greedy")
        seed: int | None = Field(default=None, description="for the same answer again")

    def __init__(self, model_id: str, model: str | Llama | None) -> None:
        self.model_id = model_id
        self._model = model
        self._plain = PlainChat(model_id)
        self._own_skip: Skip = model.skip if isinstance(model, Llama) else "auto"
        self._own_tolerance = model.tolerance if isinstance(model, Llama) else None

    @property
    def llama(self) -> Llama:
        """The loaded model."""
        if not isinstance(self._model, Llama):
            self._model = ModelOptions(self._model).load()
        return self._model

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any = None) -> Iterator[str]:
        """Answer a prompt of the llm library; the answer's record becomes the response's JSON."""
        with ggml_levels():
            yield from self._answer(prompt, response, conversation)

    def _answer(self, prompt: Any, response: Any, conversation: Any) -> Iterator[str]:
        llama, options = self.llama, prompt.options
        llama.skip = self._own_skip if options.skip is None else skip_from_text(options.skip)
        llama.tolerance = self._own_tolerance if options.tolerance is None else options.tolerance
        create: Any = llama.create_chat_completion
        if not has_template(llama):
            create = functools.partial(self._plain, llama=llama)
        ask = {"max_tokens": options.max_tokens, "temperature": options.temperature, "seed": options.seed}
        for chunk in in_thread(llama, lambda: create(messages=_messages(prompt, conversation), stream=True, **ask)):
            if text := chunk["choices"][0]["delta"].get("content"):
                yield text
        if (record := AnswerRecorder(llama).record()) is not None:
            response.response_json = record.as_json()
            response.set_usage(input=record.prompt_tokens, output=record.tokens)


def _messages(prompt: Any, conversation: Any) -> list[dict[str, str]]:
    before = conversation.responses if conversation is not None else []
    # llm sends the system message with the first prompt of a conversation only
    system = prompt.system or next((one.prompt.system for one in before if one.prompt.system), None)
    messages = [{"role": "system", "content": system}] if system else []
    for one in before:
        messages += [{"role": "user", "content": one.prompt.prompt}, {"role": "assistant", "content": one.text()}]
    return [*messages, {"role": "user", "content": prompt.prompt}]


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Any) -> None:
    """Called by llm: registers `first-cpp`, where there is a model."""
    try:
        path = os.environ.get(VARIABLE) or None
        if path is None:
            find_demo_model()
    except MissingFileError:
        return
    register(FirstCppModel("first-cpp", path))
