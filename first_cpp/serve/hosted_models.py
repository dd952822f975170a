"""The models of a server by name, of which one at a time is loaded: who asks for another has it loaded in its place."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..cli.answer_record import AnswerRecorder
from ..errors import FirstCppError
from ..llama import Llama
from .api_errors import not_loadable, unknown_model
from .idle import IdleReader, MeasuredAnswers
from .log import LOG
from .prometheus import Metrics
from .served_model import ServedModel


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is loaded, with what goes with it."""

    served: ServedModel
    idle: IdleReader
    recorder: AnswerRecorder

    @property
    def llm(self) -> Llama:
        return self.served.llm

    def close(self) -> None:
        self.idle.pause()
        self.llm.close()


@dataclass
class HostedModels:
    """loaders: for each name what loads that model; requests without a name mean the first.

    `take` and `free` are for the worker thread alone: what loads, frees and answers is one thread, so an answer ends before its
    model is freed. Other threads look at the loaded model within `using`, and it is not freed meanwhile.
    """

    loaders: Mapping[str, Callable[[], LoadedModel]]
    metrics: Metrics
    measured: MeasuredAnswers = field(default_factory=MeasuredAnswers)
    created: int = field(default_factory=lambda: int(time.time()))
    _loaded: LoadedModel | None = None
    _facts: dict[str, Any] = field(default_factory=dict)
    _in_use: threading.Lock = field(default_factory=threading.Lock)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.loaders)

    @property
    def loaded(self) -> LoadedModel | None:
        """The model that is loaded at this moment."""
        return self._loaded

    @property
    def facts(self) -> dict[str, Any]:
        """What /health says of the model loaded last."""
        return self._facts

    def name_of(self, asked: str | None) -> str:
        """The name of the model that a request means. Raises ApiError for one that is not here."""
        if asked is None:
            return self.names[0]
        if asked not in self.loaders:
            raise unknown_model(asked, self.names)
        return asked

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[LoadedModel | None]:
        """The model of that name if it is loaded, which it stays inside; else None."""
        with self._in_use:
            loaded = self._loaded
            yield loaded if loaded is not None and loaded.served.name == name else None

    def load_first(self) -> LoadedModel:
        """Load the first model, before there is a worker thread. Raises what its loader raises."""
        return self._load(self.names[0])

    def take(self, name: str) -> LoadedModel:
        """The model of that name, loaded if it is not. Raises ApiError where it cannot be."""
        if self._loaded is not None and self._loaded.served.name == name:
            return self._loaded
        self.free()
        try:
            return self._load(name)
        except (FirstCppError, OSError, RuntimeError, ValueError) as error:
            LOG.error("%s cannot be loaded: %s", name, error)
            raise not_loadable(name) from error

    def _load(self, name: str) -> LoadedModel:
        started = time.monotonic()
        loaded = self.loaders[name]()
        self.metrics.loaded(loaded.served, time.monotonic() - started)
        self._facts = loaded.served.facts()
        with self._in_use:
            self._loaded = loaded
        return loaded

    def free(self) -> None:
        """Free the memory of the loaded model, if there is one."""
        with self._in_use:
            loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self.metrics.freed()
            loaded.close()

    def cancel(self) -> None:
        """End what the loaded model is at."""
        if (loaded := self._loaded) is not None:
            loaded.llm.cancel()
