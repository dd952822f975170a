"""One model in one configuration: its rows, measured test by test, and what was not measured."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from ..errors import MissingFileError, OptionError
from ..gguf.model_file import ModelFile
from ..gguf.quantise import quiet_llama_cpp
from ..gguf.router_format import load_routers
from .engines import OTHER, OURS, PRUNED, STOCK, Files, Row, chosen_layers, prepared, skip_text
from .measure import Plan, measure
from .models import BenchModel
from .number_lists import SkipSetting, numbers, skips
from .records import Record, record
from .resident import resident_bytes
from .table import layer_ranges
from .workload import Configuration, Test, llama_settings, tests_of

ENGINES = (STOCK, OURS, PRUNED)


@dataclass(frozen=True)
class Asked:
    """What the command line asks of every model and configuration.

    skips: shares, auto, and sets of layers. own: keywords of first_cpp.Llama alone. text: the prompts' text, None for random
    tokens. vs: another model file. resident: whether a process per row measures its memory.
    """

    skips: Sequence[SkipSetting]
    engines: Sequence[str]
    drafts: Sequence[int]
    tests: Sequence[Test]
    own: dict[str, Any]
    text: bytes | None
    vs: str | None
    repetitions: int
    loads: int
    warm_up: bool
    delay: float
    seed: int
    resident: bool

    @classmethod
    def of(cls, args: argparse.Namespace) -> Asked:
        """Raises OptionError or MissingFileError for what cannot be measured."""
        engines = args.engines.split(",")
        if unknown := set(engines) - set(ENGINES):
            raise OptionError(f"--engines: {', '.join(sorted(unknown))} unknown; allowed: {', '.join(ENGINES)}")
        wanted = skips(args.skip)
        if not args.vs and engines == [PRUNED] and not any(wanted):
            raise OptionError(f"no rows: --engines {args.engines} has none at --skip {args.skip}")
        return cls(
            skips=wanted,
            engines=engines,
            drafts=sorted({0, *numbers(args.draft, "--draft")}),
            tests=tests_of(args),
            own={"release_kv": args.release_kv, "prefill": args.prefill, "route_tokens": args.route_tokens},
            text=None if args.file is None else _read(args.file),
            vs=args.vs,
            repetitions=args.repetitions,
            loads=args.loads,
            warm_up=not args.no_warmup,
            delay=args.delay,
            seed=args.seed,
            resident=not args.no_resident,
        )


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise MissingFileError(f"-f: there is no file {path}") from None


class Bench:
    """The rows of one model in one configuration, ready to be measured.

    rows: in the order of reports. layers: those that each skip setting comes to. n_layer: layers of the model.
    """

    def __init__(
        self, model: BenchModel, configuration: Configuration, asked: Asked, files: Files, progress: Callable[[str], object]
    ) -> None:
        self.model, self.asked, self._configuration, self._progress = model, asked, configuration, progress
        self._settings = llama_settings(configuration, asked.tests)
        self._routers = load_routers(files.routers) if isinstance(files.routers, str) else files.routers
        self.n_layer = ModelFile.open(files.model).n_layer
        self._text = self._tokens(files.model)
        progress("choosing layers")
        prompt = self._text or _random_prompt(max(test.n_prompt for test in asked.tests) or 64, asked.seed)
        self._n_choosing = len(prompt)
        self.layers = chosen_layers(files, asked.skips, prompt, self._settings)
        self.rows = list(self._rows(files))

    @classmethod
    @contextlib.contextmanager
    def prepare(
        cls,
        model: BenchModel,
        configuration: Configuration,
        asked: Asked,
        progress: Callable[[str], object] = lambda what: None,
    ) -> Iterator[Bench]:
        """The files that the rows need are there inside. Raises SkipError for layers that the model does not have."""
        with prepared(model, copy=PRUNED in asked.engines) as files:
            yield cls(model, configuration, asked, files, progress)

    def run(self) -> Iterator[list[Record]]:
        """Measure; yields the records of each test when they are complete."""
        asked = self.asked
        resident: dict[str, int | None] = {row.key: None for row in self.rows}
        if asked.resident:
            for row in self.rows:
                self._progress(f"resident memory of {row.key}")
                n_prompt = max(1, *(test.n_prompt for test in asked.tests))
                resident[row.key] = resident_bytes(row, self._settings, asked.own, n_prompt)
        plan = Plan(asked.tests, asked.repetitions, asked.loads, asked.warm_up, asked.delay, self._text, asked.seed)
        for measured in measure(self.rows, plan, self._settings, asked.own, self._progress):
            yield [record(one, self.model, self._configuration, self.n_layer, resident[one.row.key]) for one in measured]

    def notes(self) -> list[str]:
        """Which layers each setting skips and why those; the rows that are not measured."""
        found = []
        for skip, layers in self.layers.items():
            if layers != skip and (layers or isinstance(skip, tuple)):
                which = f"layer{'s' * (len(layers) > 1)} {layer_ranges(layers)}" if layers else "nothing"
                found.append(f"skip {skip_text(skip)}: {which} ({self._why(skip)})")
        if self.model.random:
            found.append(f"the model is kept for the next time: {self.model.path}")
        return found + self._not_measured()

    def _why(self, skip: SkipSetting) -> str:
        if self._routers is None:
            return "those amid the model: it has no routers"
        if isinstance(skip, tuple):
            return "the router file marks the others unskippable"
        if skip == "auto":
            return f"chosen by the routers for a prompt of {self._n_choosing} tokens; where a prompt is read its own counts"
        return (
            "chosen by the routers for the prompt"
            if self._routers.kind == "layers"
            else "the set of the file's calibration for all prompts"
        )

    def _not_measured(self) -> list[str]:
        found = []
        if PRUNED in self.asked.engines:
            if any(not layers for layers in self.layers.values()):
                found.append("not measured: pruned at skip 0, which is stock")
            if self.asked.drafts != [0]:
                found.append("not measured: pruned with drafts")
        if self.asked.vs:
            found.append("not measured: --vs by first_cpp, or with drafts")
        return found

    def _rows(self, files: Files) -> Iterator[Row]:
        engines = self.asked.engines
        for draft in self.asked.drafts:
            if STOCK in engines:
                yield Row(STOCK, files.model, draft=draft)
            for skip, layers in self.layers.items():
                if OURS in engines:
                    yield Row(OURS, files.model, skip, layers, draft, files.routers)
                if PRUNED in engines and layers and not draft:
                    yield Row(PRUNED, files.pruned(layers), skip, layers)
        if self.asked.vs:
            yield Row(OTHER, self.asked.vs)

    def _tokens(self, model: str) -> list[int]:
        """The first tokens of the text, as many as the longest prompt has; none without a text."""
        if self.asked.text is None:
            return []
        n_tokens = max(test.n_prompt for test in self.asked.tests)
        with quiet_llama_cpp():
            vocabulary = llama_cpp.Llama(model, vocab_only=True, verbose=False)
        tokens = vocabulary.tokenize(self.asked.text)
        vocabulary.close()
        if len(tokens) < n_tokens:
            raise OptionError(f"the text of -f has {len(tokens)} tokens, the longest prompt needs {n_tokens}")
        return [int(token) for token in tokens[:n_tokens]]


def _random_prompt(n_tokens: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(40, 240, n_tokens).tolist()  # type: ignore[no-any-return]
