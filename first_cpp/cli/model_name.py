"""Models by name: what `-m` takes, a path, `demo` or `hf:org/repo[:file or type]`, becomes the path of a file."""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ..errors import MissingFileError, OptionError
from ..gguf.bundled import bundled_adapters, find_demo_model
from ..gguf.demo_model import demo_model_with_routers
from ..gguf.model_file import normal_path, parts_of
from .extras import need_extra

DEMO = "demo"
HUB = "hf:"
HELP = "a GGUF file, demo, or hf:USER/NAME[:FILE or TYPE] for one of a Hugging Face repository"
DEFAULT_TYPES = ("Q4_K_M", "Q4_0", "Q8_0")
"""Taken in this order from a repository that has several files, where the name says no more."""
_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<wanted>.+))?")
_PART_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class HubName:
    """A name of a model on the Hugging Face hub. wanted: a file, a pattern or a file type; None for the usual type.

    >>> HubName.parse("hf:org/model-GGUF:Q8_0")
    HubName(repo='org/model-GGUF', wanted='Q8_0')
    """

    repo: str
    wanted: str | None = None

    @classmethod
    def parse(cls, name: str) -> HubName:
        """Raises OptionError for what is no such name."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise OptionError(f"{name!r} names no model: hf:USER/NAME, or hf:USER/NAME:FILE or :TYPE, like hf:org/repo:Q8_0")
        return cls(found["repo"], found["wanted"])

    def choose(self, files: Collection[str]) -> str:
        """The file meant among those of the repository; of a split model its first part. Raises OptionError.

        >>> HubName("org/repo").choose(["m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-m-Q4_K_M.gguf", "README.md"])
        'm-Q4_K_M.gguf'
        """
        models = sorted(name for name in files if _is_model(name))
        if self.wanted is None:
            tried = [[name for name in models if _has_type(name, kind)] for kind in DEFAULT_TYPES]
            found = next((names for names in tried if len(names) == 1), models)
        else:
            found = [name for name in models if name == self.wanted] or [name for name in models if self._matches(name)]
        if len(found) == 1:
            return found[0]
        if not models:
            raise OptionError(f"hf:{self.repo} has no GGUF file")
        asked = f"{self.wanted!r} names {'none' if not found else 'several'} of its files" if self.wanted else "name one"
        raise OptionError(f"hf:{self.repo}: {asked}; after a colon give a file or a type: {', '.join(models)}")

    def _matches(self, name: str) -> bool:
        assert self.wanted is not None
        pattern = fnmatch.fnmatch(name, self.wanted) or fnmatch.fnmatch(os.path.basename(name), self.wanted)
        return pattern or _has_type(name, self.wanted)


def is_demo(name: str | os.PathLike[str] | None) -> bool:
    """Whether a name of a model means the demo model: none does, and `demo` where no file is called so."""
    return name is None or (name == DEMO and not os.path.exists(DEMO))


def find_model_to_use(name: str | os.PathLike[str] | None, offline: bool = False) -> str:
    """As `find_model`, for verbs that use a model as it is: the demo model comes with its everyday adapter folded in.

    Raises also as `demo_model_with_routers`.
    """
    if is_demo(name):
        return demo_model_with_routers(say=lambda text: print(text, file=sys.stderr))
    return find_model(name, offline)


def find_model(name: str | os.PathLike[str] | None, offline: bool = False) -> str:
    """The path of the model of that name, downloaded where it is not in the cache; the demo model as it came.

    offline: only what is in the cache. Raises as `check_name`, MissingFileError for what is not in the cache, OSError where the
    hub cannot be reached. That a path exists is not checked.

    >>> find_model("model-first.gguf")
    'model-first.gguf'
    """
    if name is None or is_demo(name):
        return normal_path(find_demo_model())
    if not isinstance(name, str):
        return normal_path(name)
    if name not in bundled_adapters():  # of which --routers knows more to say
        check_name(name)
    if not name.startswith(HUB):
        return normal_path(name)
    wanted = HubName.parse(name)
    from huggingface_hub import constants

    return _cached(wanted) if offline or constants.HF_HUB_OFFLINE else _from_hub(wanted)


def check_name(name: str) -> None:
    """Raise OptionError for a name that cannot be one, MissingExtraError for one that needs huggingface-hub, MissingFileError
    for a word that is neither a name nor a file here."""
    if name.startswith(HUB):
        HubName.parse(name)
        need_extra(f"-m {name}", "hub", "huggingface_hub")
    elif re.fullmatch(r"[^/\\]+(?<!\.gguf)", name) and not is_demo(name) and not os.path.exists(name):
        raise MissingFileError(
            f"there is no file {name}; a model is a GGUF file, {DEMO}, or {HUB}USER/NAME; `first-cpp models` lists what is here"
        )


def add_offline(add: Callable[..., object]) -> None:
    """Add `--offline` by a parser's `add_argument`, for parsers whose options take names of models."""
    add("--offline", action="store_true", help="take hf: models from the cache alone")


def find_models(args: argparse.Namespace, *names: str, find: Callable[[str, bool], str] = find_model) -> None:
    """Replace the model names under `names` of parsed arguments, one or a list each, by paths. Raises as `find`."""
    for name in names:
        given = getattr(args, name)
        if isinstance(given, list):
            setattr(args, name, [find(one, args.offline) for one in given])
        elif given is not None:
            setattr(args, name, find(given, args.offline))


def _is_model(name: str) -> bool:
    """Whether a file of a repository is a model, or the first part of one."""
    base = os.path.basename(name)
    return name.endswith(".gguf") and "mmproj" not in base.lower() and os.path.basename(parts_of(name)[0]) == base


def _has_type(name: str, kind: str) -> bool:
    stem = _PART_NUMBER.sub("", os.path.basename(name).removesuffix(".gguf"))
    return re.search(rf"(^|[-._]){re.escape(kind)}$", stem, re.IGNORECASE) is not None


# -- the cache ---------------------------------------------------------------------------------------------------------


def cached_files() -> dict[str, dict[str, str]]:
    """The files in the cache of Hugging Face, by repository: name to path, the newest revision's. Needs huggingface-hub."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except CacheNotFound:
        return {}
    found: dict[str, dict[str, str]] = {}
    for repo in sorted(repos, key=lambda one: one.repo_id):
        files = found[repo.repo_id] = {}
        for revision in sorted(repo.revisions, key=lambda one: one.last_modified):
            files |= {file.file_path.relative_to(revision.snapshot_path).as_posix(): str(file.file_path)
                      for file in revision.files}  # fmt: skip
    return found


def _cached(wanted: HubName) -> str:
    files = cached_files().get(wanted.repo, {})
    if not any(map(_is_model, files)):
        raise MissingFileError(f"hf:{wanted.repo} is not in the cache; without --offline it is downloaded")
    path = files[wanted.choose(files)]
    for part in parts_of(path):
        if not os.path.exists(part):
            raise MissingFileError(f"hf:{wanted.repo}: {os.path.basename(part)} is not in the cache; without --offline it is")
    return path


def _from_hub(wanted: HubName) -> str:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        # list_repo_files would try for 20 seconds to reach a hub that is not there
        files = [file.rfilename for file in HfApi().model_info(wanted.repo, timeout=10).siblings or ()]
        file = wanted.choose(files)
        parts = [str(hf_hub_download(wanted.repo, part)) for part in parts_of(file)]
        return parts[0]
    except RepositoryNotFoundError:
        raise OptionError(f"hf:{wanted.repo} does not exist, or only for those logged in (`hf auth login`)") from None
    except OptionError:
        raise
    except Exception as error:  # what its network library raises differs by version
        try:
            path = _cached(wanted)
        except MissingFileError:
            raise OSError(f"hf:{wanted.repo} cannot be downloaded, and is not in the cache: {error}") from error
        print(f"the hub cannot be reached ({type(error).__name__}); taking {path} from the cache", file=sys.stderr)
        return path
