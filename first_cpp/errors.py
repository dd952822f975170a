"""What can go wrong, one class a kind; each is also the built-in error that callers of llama_cpp expect."""

from __future__ import annotations


class FirstCppError(Exception):
    """Base of all errors first_cpp raises on purpose."""


class ModelFileError(FirstCppError, ValueError):
    """A file that cannot be used as a model or router file."""


class MissingFileError(ModelFileError, FileNotFoundError):
    """A file that is not there. llama_cpp raises ValueError for it, the rest of Python FileNotFoundError."""


class RouterError(FirstCppError, ValueError):
    """Routers that are malformed, of another format version, or made for another model."""


class SkipError(FirstCppError, ValueError):
    """A ``skip`` setting that names no valid set of layers."""


class OffloadError(FirstCppError, ValueError):
    """Layers on a GPU and routing asked for: layers can be skipped on the CPU only."""


class RoutingError(FirstCppError, RuntimeError):
    """llama.cpp built a graph in which the chosen layers could not be skipped."""


class BusyError(FirstCppError, RuntimeError):
    """The model is at work for another thread, or an older answer was resumed after a newer prompt."""


class ForkedError(FirstCppError, RuntimeError):
    """A model was loaded before the process was forked."""


class ClosedError(FirstCppError, RuntimeError):
    """The model was used after ``close()``."""


class AnswerCancelled(FirstCppError, RuntimeError):
    """The answer was ended by ``Llama.cancel()``."""


class SettingError(FirstCppError, ValueError):
    """An argument of ``Llama`` that cannot be used, alone or together with another."""


class OptionError(FirstCppError, ValueError):
    """An option of a command that cannot be used, alone or together with another."""


class MissingExtraError(FirstCppError, ImportError):
    """A package that one of the extras brings is not installed."""


class ContextFull(FirstCppError, ValueError):
    """More tokens than the context has room for."""


class GrammarError(FirstCppError, ValueError):
    """A grammar or JSON schema that cannot be held, or that leaves an answer no token to go on with."""


class StateError(FirstCppError, RuntimeError):
    """A saved state that cannot be restored; the model was reset."""


class LogitsError(FirstCppError, RuntimeError):
    """The model computed logits that are no numbers."""
