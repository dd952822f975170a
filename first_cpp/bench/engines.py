"""The rows of a benchmark: which engine, with which layers skipped, from which file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import llama_cpp

from ..gguf.deferred_signals import DeferredSignals
from ..gguf.model_file import ModelFile
from ..gguf.pruned import write_pruned
from ..gguf.router_format import read_routers
from ..gguf.routers import Routers
from ..llama import Llama
from ..skip import check_layers, layers_for_share
from .models import BenchModel
from .number_lists import SkipSetting

STOCK, OURS, PRUNED, OTHER = "stock", "first_cpp", "pruned", "other"


@dataclass(frozen=True, eq=False)
class Row:
    """One line of every test.

    engine: stock (llama_cpp.Llama), first_cpp, pruned (stock on the file without the layers), other (stock on --vs).
    skip: the setting: share, layers or auto. skipped: the layers that it comes to. draft: tokens per prompt-lookup draft, or 0.
    file: the GGUF. routers: what keep scores are read with, where they are.
    """

    engine: str
    file: str
    skip: SkipSetting = 0.0
    skipped: tuple[int, ...] = ()
    draft: int = 0
    routers: str | Routers | None = None

    @property
    def key(self) -> str:
        """A name that no other row of the same run has."""
        draft = f" draft {self.draft}" if self.draft else ""
        share = f" {skip_text(self.skip)}" if self.skip else ""
        return f"{self.engine}{share}{draft}" + (f" {os.path.basename(self.file)}" if self.engine == OTHER else "")

    @property
    def chooses(self) -> bool:
        """Whether a prompt's keep scores choose the layers: not with drafts, whose rows are to skip the same ones."""
        return self.engine == OURS and self.routers is not None and not isinstance(self.skip, tuple) and not self.draft

    def load(self, settings: dict[str, Any], own: dict[str, Any]) -> llama_cpp.Llama:
        """Load the row's engine; `own` are keywords that first_cpp.Llama alone knows."""
        if self.draft:
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

            # all logits: stock has room for those of n_batch positions otherwise, and drafts need them all
            settings = {**settings, "draft_model": LlamaPromptLookupDecoding(num_pred_tokens=self.draft), "logits_all": True}
        if self.engine == OURS:
            return Llama(self.file, routers=self.routers, skip=list(self.skipped), **own, **settings)
        with DeferredSignals():  # Llama has them by itself
            return llama_cpp.Llama(self.file, **settings)


def skip_text(skip: SkipSetting) -> str:
    """A skip setting as it is typed.

    >>> skip_text(0.25), skip_text((7, 11))
    ('0.25', '[7,11]')
    """
    if skip == "auto":
        return skip
    return f"{skip:g}" if isinstance(skip, float) else f"[{','.join(map(str, skip))}]"


@dataclass
class Files:
    """The files of one model: the one that all rows with all layers share, and the pruned ones beside it.

    Compared files are written alike: mapped from the page cache, a file is as fast as its pages lie.
    """

    model: str
    routers: str | Routers | None
    folder: str
    _pruned: dict[tuple[int, ...], str] = field(default_factory=dict)

    def pruned(self, layers: tuple[int, ...]) -> str:
        """The file without `layers`, written when it is first asked for."""
        if layers not in self._pruned:
            path = os.path.join(self.folder, f"pruned-{len(self._pruned)}.gguf")
            write_pruned(self.model, path, layers)
            self._pruned[layers] = path
        return self._pruned[layers]


@contextlib.contextmanager
def prepared(model: BenchModel, copy: bool) -> Iterator[Files]:
    """A model's files in a temporary folder that is removed afterwards."""
    routers = model.routers or _embedded(model.path)
    with tempfile.TemporaryDirectory(prefix="first-cpp-bench-") as folder:
        whole = os.path.join(folder, os.path.basename(model.path)) if copy else model.path
        if copy:
            write_pruned(model.path, whole, [])
        yield Files(whole, routers, folder)


def _embedded(model: str) -> Routers | None:
    """The model's own routers: llama.cpp's writer drops them from copies."""
    return read_routers(ModelFile.open(model).first, model)


def chosen_layers(
    files: Files, skips: Sequence[SkipSetting], prompt: list[int], settings: dict[str, Any]
) -> dict[SkipSetting, tuple[int, ...]]:
    """The layers that each setting skips: with routers those that they choose for `prompt`, or leave of a set; without routers,
    of a share those amid the model, of auto none.

    Raises SkipError for a setting that would skip all layers, or layers that do not exist.
    """
    n_layer = ModelFile.open(files.model).n_layer
    for skip in skips:  # before anything is loaded
        if isinstance(skip, tuple):
            check_layers(skip, n_layer)
        elif skip != "auto":
            layers_for_share(skip, n_layer)
    llm = Llama(files.model, routers=files.routers, skip=None, **settings)
    try:
        return {skip: _chosen(llm, files, skip, prompt, n_layer) for skip in skips}
    finally:
        llm.close()


def _chosen(llm: Llama, files: Files, skip: SkipSetting, prompt: list[int], n_layer: int) -> tuple[int, ...]:
    if not files.routers and isinstance(skip, tuple):
        return skip
    if not isinstance(skip, tuple):
        count = 0 if skip == "auto" else layers_for_share(skip, n_layer)
        if not files.routers or not (count or skip == "auto"):
            start = (n_layer - count + 1) // 2
            return tuple(range(start, start + count))
    llm.skip = list(skip) if isinstance(skip, tuple) else skip
    answer = llm.generate(prompt, temp=0.0)
    next(answer)
    answer.close()
    assert llm.routing is not None
    return llm.routing.skipped
