"""The rows of a benchmark: which engine, with which layers left out, from which file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np

from ..gguf.pruned import write_pruned
from ..llama import Llama

STOCK, OURS, PRUNED, OTHER = "stock", "first_cpp", "pruned", "other"


@dataclass(frozen=True)
class Row:
    """engine: stock (llama_cpp.Llama), first_cpp, pruned (stock on the file without the layers), other (stock on --vs).

    skip: share of layers asked for. left_out: the layers. draft: tokens per prompt-lookup draft, 0 without. file: the GGUF.
    routers: whether the prompt's keep scores are read.
    """

    engine: str
    file: str
    skip: float = 0.0
    left_out: tuple[int, ...] = ()
    draft: int = 0
    routers: str | None = None
    routed: bool = False

    @property
    def key(self) -> str:
        """A name that no other row of the same run has."""
        draft = f" draft {self.draft}" if self.draft else ""
        share = f" {self.skip:g}" if self.skip else ""
        return f"{self.engine}{share}{draft}" + (f" {os.path.basename(self.file)}" if self.engine == OTHER else "")

    def load(self, settings: dict[str, Any], own: dict[str, Any]) -> llama_cpp.Llama:
        """Load the row's engine; `own` are keywords that first_cpp.Llama alone knows."""
        if self.draft:
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

            settings = {**settings, "draft_model": LlamaPromptLookupDecoding(num_pred_tokens=self.draft)}
        if self.engine == OURS:
            return Llama(self.file, routers=self.routers, skip=list(self.left_out), **own, **settings)
        return llama_cpp.Llama(self.file, **settings)


@dataclass
class Files:
    """The files of one model: the one that all rows with all layers share, the pruned ones beside it, side files.

    Compared files are written alike: mapped from the page cache, a file is as fast as its pages lie.
    """

    model: str
    routers: str | None
    folder: str
    _pruned: dict[tuple[int, ...], str] = field(default_factory=dict)

    def pruned(self, layers: tuple[int, ...]) -> str:
        if layers not in self._pruned:
            path = os.path.join(self.folder, f"pruned-{len(self._pruned)}.gguf")
            write_pruned(self.model, path, layers)
            self._pruned[layers] = path
        return self._pruned[layers]


@contextlib.contextmanager
def prepared(model: str, routers: str | None, copy: bool) -> Iterator[Files]:
    """A model's files in a temporary folder that goes away afterwards."""
    with tempfile.TemporaryDirectory(prefix="first-cpp-bench-") as folder:
        whole = os.path.join(folder, os.path.basename(model)) if copy else model
        if copy:
            write_pruned(model, whole, [])
        yield Files(whole, routers or _embedded(model), folder)


def _embedded(model: str) -> str | None:
    """The model's own routers, as llama.cpp's writer keeps no metadata arrays of others: read from the file itself."""
    from ..gguf.model_file import open_gguf
    from ..gguf.router_format import read_routers

    return model if read_routers(open_gguf(model), model) is not None else None


def layers_by_share(
    files: Files, shares: Sequence[float], prompt: list[int], settings: dict[str, Any]
) -> dict[float, tuple[int, ...]]:
    """The layers that each share leaves out: as the routers choose for `prompt`; without routers those amid the model.

    Raises SkipError for a share that would leave out all layers.
    """
    from ..skip import layers_for_share

    llm = Llama(files.model, routers=files.routers, skip=None, **settings)
    n_layer = llama_cpp.llama_model_n_layer(llm.model)
    found: dict[float, tuple[int, ...]] = {}
    for share in shares:
        count = layers_for_share(share, n_layer)
        if files.routers and count:
            llm.skip = share
            answer = llm.generate(prompt, temp=0.0)
            next(answer)
            answer.close()
            assert llm.routing is not None
            found[share] = llm.routing.skipped
        else:
            start = (n_layer - count + 1) // 2
            found[share] = tuple(range(start, start + count))
    llm.close()
    return found


def write_random_routers(path: str, model: str, n_layer: int, n_embd: int) -> None:
    """A side file with random routers: prefill scores the prompt as it does with trained ones."""
    from ..gguf.embed import write_sidecar
    from ..gguf.model_file import ModelFile
    from ..gguf.router_format import WRITER
    from ..gguf.routers import Routers

    weight = np.random.default_rng(0).normal(0, 0.02, (n_layer, n_embd)).astype(np.float32)
    base = ModelFile.open(model).base
    routers = Routers(base, weight, np.zeros(n_layer, np.float32), 1e-5, (True,) * n_layer, 0.25, WRITER)
    write_sidecar(routers, model, path, force=True)
