"""A llama_cpp.Llama that its caller's mistakes do not crash: sizes, threads, the end of the context, use after close."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jinja2
import llama_cpp
import numpy as np
import numpy.typing as npt

from ..errors import ContextFull, SettingError
from ..gguf.model_limits import Spelling
from .answer import ContextEnd, CurrentAnswer
from .arguments import check_messages, check_sampling, why_no_context, with_default_threads
from .completion_arguments import as_stops, check_completion, check_tools, put_plainly
from .loading import Loading, without_broken_templates
from .long_text import least_tokens
from .one_thread import CLOSED, OneThread, exclusive
from .streamed_text import StreamedText, before_stop
from .structured import Structured, check_forced_tool, exact_schemas, plain_format
from .token_text import TokenText, without_broken

_BASE_CHAT = inspect.signature(llama_cpp.Llama.create_chat_completion)
_BASE_SAMPLER = inspect.signature(llama_cpp.Llama._init_sampler)
_BASE_EMBED = inspect.signature(llama_cpp.Llama.embed)
_BASE_COMPLETION = inspect.signature(llama_cpp.Llama._create_completion)


class GuardedLlama(llama_cpp.Llama):  # type: ignore[misc]
    """The base of `first_cpp.Llama`; what it guards against is in docs/internals/faults.md.

    Raises SettingError for sizes that llama.cpp has no memory for.

    >>> llm = Llama("model.gguf", verbose=False)
    >>> schema = {"enum": ["yes", "no"]}
    >>> answer = llm.create_chat_completion(
    ...     [{"role": "user", "content": "Is it?"}], response_format={"type": "json_object", "schema": schema}
    ... )
    >>> answer["choices"][0]["message"]["content"] in ('"yes"', '"no"')
    True
    """

    # of the base class, which has no annotations
    n_tokens: int
    input_ids: npt.NDArray[np.intc]
    scores: npt.NDArray[np.single]
    tokenizer_: Any
    _model: Any
    _sampler: Any
    _current: CurrentAnswer  # of the subclass
    _structured: Structured  # of the subclass, which knows what cancels an answer
    _spelling: Spelling | None = None
    _in_chat = False
    _streams_text = False
    _n_tokens_seen = -1

    def __init__(self, model_path: str, **kwargs: Any) -> None:
        self._exclusive = OneThread()
        self._metadata: dict[str, str] = {}
        self._repair_templates = False
        self._loading = Loading(self.on_load_progress)
        with self._loading:
            self._load(model_path, with_default_threads(kwargs))
        self._text = TokenText(self) if type(self.tokenizer_) is llama_cpp.LlamaTokenizer else None
        self._fit_to_context()

    def _load(self, model_path: str, settings: dict[str, Any]) -> None:
        """Load the model and create its context, as the base class does it."""
        try:
            super().__init__(model_path=model_path, **settings)
        except (jinja2.TemplateError, SyntaxError):
            if self._repair_templates:
                raise
            super().close()
            self._repair_templates = True
            self._load(model_path, settings)
        except ValueError as error:
            if "llama_context" not in str(error):
                raise
            raise SettingError(why_no_context(self.model, self.context_params)) from error

    def on_load_progress(self, share: float) -> None:
        """Called while the model is loaded, with the share that is there, 0 to 1; nothing by default.

        >>> from first_cpp import Llama
        >>> class Watched(Llama):
        ...     def on_load_progress(self, share):
        ...         self.loaded = share
        >>> Watched("model.gguf", verbose=False).loaded
        1.0
        """

    @property
    def model_params(self) -> Any:
        """The llama_model_params of the base class, with a callback by which loading can be stopped."""
        return self._model_params

    @model_params.setter
    def model_params(self, params: Any) -> None:
        params.progress_callback = self._loading.callback
        self._model_params = params

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the model file, as in the base class."""
        return self._metadata

    @metadata.setter
    def metadata(self, metadata: dict[str, str]) -> None:
        self._metadata = without_broken_templates(metadata) if self._repair_templates else metadata

    @functools.cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end an answer: EOS, and what else the vocabulary marks so, as the end of a turn.

        >>> from first_cpp import Llama
        >>> Llama("model.gguf", verbose=False).end_tokens
        (2,)
        """
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        return tuple(token for token in range(self.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, token))

    def _fit_to_context(self) -> None:
        """llama.cpp rounds n_ctx up; tokens beyond the number asked for are recorded too, so that they can be read again."""
        missing = self._n_ctx - len(self.input_ids)
        if missing > 0:
            self.input_ids = np.concatenate([self.input_ids, np.zeros(missing, np.intc)])
        if self._logits_all and len(self.scores) < self._n_ctx:  # with a draft model, the base class has n_batch rows
            self.scores = np.ndarray((self._n_ctx, self._n_vocab), np.single)

    def _forget_logits(self) -> None:
        """The logits that llama.cpp holds are no longer those of the last position: it is to be evaluated again."""
        self._requires_eval = True

    @property
    def draft_model(self) -> Any:
        """What drafts tokens ahead of decoding, as given to the constructor."""
        return self._draft_model

    @draft_model.setter
    def draft_model(self, draft_model: Any) -> None:
        if draft_model is not None and not getattr(self, "_logits_all", True):
            raise ValueError("a draft model needs the logits of every token: give draft_model= to the constructor")
        self._draft_model = draft_model

    def close(self) -> None:
        """Free the model. Closing again is fine; any other use afterwards raises ClosedError."""
        if not hasattr(self, "_stack") or self._exclusive.forked:
            return  # the constructor failed early; or the model is the parent process's
        with self._exclusive:
            self._structured.close()
            super().close()
            if hasattr(self, "_model") and self._model is not CLOSED:
                self._model.model = self._model.vocab = CLOSED  # tokenizers taken from this model hold on to it
            self._text = None
            self._ctx = self._model = self._batch = self.tokenizer_ = CLOSED

    # -- one thread at a time ---------------------------------------------------------------------------------------

    def _create_completion(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        # One step of a whole answer is the whole answer: no other thread comes between its tokens.
        given = _BASE_COMPLETION.bind(self, *args, **kwargs)
        given.apply_defaults()
        check_completion(given.arguments, self.n_vocab())
        put_plainly(given.arguments)
        if isinstance(prompt := given.arguments["prompt"], str):
            self._check_length(prompt.encode("utf-8"))
        end = given.arguments["stopping_criteria"] = ContextEnd(self._seeing_logits(given.arguments["stopping_criteria"]))
        streamed, self._n_tokens_seen = self._streamed_text(given.arguments), -1
        inner = super()._create_completion(*given.args[1:], **given.kwargs)
        try:
            while True:
                with self._exclusive:
                    self._streams_text = streamed is not None and given.arguments["logprobs"] is None
                    try:
                        chunk = next(inner)
                    except StopIteration:
                        return
                    except ValueError as error:
                        if "exceed context window" in str(error) and not isinstance(error, ContextFull):
                            raise ContextFull(f"{error}; a larger n_ctx= has room") from error
                        raise
                    finally:
                        self._streams_text = False
                if end.reached and chunk["choices"][0]["finish_reason"] == "stop":
                    chunk["choices"][0]["finish_reason"] = "length"
                if streamed is not None:
                    yield from streamed.completed(chunk)
                    continue
                if not (given.arguments["stream"] or given.arguments["echo"] or given.arguments["suffix"]):
                    chunk["choices"][0]["text"] = before_stop(chunk["choices"][0]["text"], given.arguments["stop"])
                yield chunk
        finally:
            inner.close()

    def _seeing_logits(self, criterion: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """The criterion with the logits that the last token was drawn from; the base class hands on others, or none at all."""
        if criterion is None:
            return None
        n_vocab = self.n_vocab()

        def ends(tokens: Any, _: object) -> bool:
            row = llama_cpp.llama_get_logits_ith(self.ctx, len(tokens) - 1 - self.n_tokens)
            return bool(criterion(tokens, np.ctypeslib.as_array(row, shape=(n_vocab,)).copy()))

        return ends

    def _streamed_text(self, given: dict[str, Any]) -> StreamedText | None:
        """What completes the chunks of a stream, where the base class may lose some of its text."""
        if self._text is None or not given["stream"]:
            return None
        return StreamedText(self._answer_texts(), given["stop"])

    def _answer_texts(self) -> Callable[[int | None], str]:
        """Gives the text of the first tokens of the answer, or of all that there are."""
        bos, made, n_seen = self.token_bos(), list[int](), 0

        def text(n_tokens: int | None) -> str:
            nonlocal n_seen
            if (answer := self._current.last) is not None:
                new, n_seen = answer.tokens[n_seen:], answer.n_tokens
                made.extend(token for token in new if token != bos)
            return self.detokenize(made if n_tokens is None else made[:n_tokens]).decode("utf-8", errors="ignore")

        return text

    @exclusive
    @functools.wraps(llama_cpp.Llama.create_chat_completion)
    def create_chat_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As in the base class; answers keep to the whole JSON schema of `response_format` and of a tool that is chosen.

        `response_format` may be OpenAI's {"type": "json_schema", ...} too. Raises GrammarError for schemas that cannot be held,
        SettingError for messages of another shape.
        """
        given = _BASE_CHAT.bind(self, *args, **kwargs).arguments
        given.pop("self")
        check_messages(given["messages"])
        check_tools(given.get("tools"))
        check_completion(given, self.n_vocab())
        given["stop"] = as_stops(given.get("stop"))
        given["response_format"] = plain_format(given.get("response_format"))
        check_forced_tool(given)
        self._in_chat = True
        try:
            with exact_schemas():
                return super().create_chat_completion(**given)  # multimodal handlers evaluate images by themselves
        finally:
            self._in_chat = False

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """The tokens of a text, as in the base class.

        Raises ContextFull for the prompt of a chat that is too long by far, SettingError for a text that cannot be spelled.
        """
        if self._in_chat:
            self._check_length(text)
        if self._spelling is not None:
            self._spelling.check(text)
        return super().tokenize(text, add_bos, special)  # type: ignore[no-any-return]

    def _check_length(self, prompt: bytes) -> None:
        """Raise ContextFull for a prompt that is too long by far, before all of it is tokenised."""
        if self._spelling is not None:
            self._spelling.check(prompt)
        least = least_tokens(functools.partial(super().tokenize, special=True), prompt, self._n_ctx)
        if least > self._n_ctx:
            raise ContextFull(
                f"Requested tokens ({least} or more) exceed context window of {self._n_ctx}; a larger n_ctx= has room"
            )

    @exclusive
    @functools.wraps(llama_cpp.Llama.sample)
    def sample(self, *args: Any, **kwargs: Any) -> int:
        before = self._sampler
        try:
            return super().sample(*args, **kwargs)  # type: ignore[no-any-return]
        except BaseException:
            self._sampler = before  # the base class would keep one of this call alone
            raise

    @exclusive
    @functools.wraps(llama_cpp.Llama.embed)
    def embed(self, *args: Any, **kwargs: Any) -> Any:
        given = _BASE_EMBED.bind(self, *args, **kwargs).arguments
        given.pop("self")
        texts = given["input"]
        if not isinstance(texts, str):
            texts = given["input"] = list(texts)  # of an iterator, too
        for text in [texts] if isinstance(texts, str) else texts or [""]:
            if not isinstance(text, str):
                raise SettingError(f"what is to be embedded is a text, or a list of texts, not {text!r:.100}")
            if not text or not self.tokenize(text.encode("utf-8")):  # llama_cpp writes beyond its batch for it
                raise SettingError("a text to embed is empty, or there is none")
        try:
            return super().embed(**given)
        except BaseException:  # the base class has emptied the KV cache, and says so at its end alone
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.ctx), True)
            self.reset()
            raise

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Any:
        given = _BASE_SAMPLER.bind(self, *args, **kwargs).arguments
        given.pop("self")
        check_sampling(given)
        return self._structured.sampler(self, super()._init_sampler, given)

    def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """The text of `tokens`, as in the base class."""
        if self._text is None:
            return super().detokenize(tokens, prev_tokens=prev_tokens, special=special)  # type: ignore[no-any-return]
        text = self._text.text(tokens, special)
        if not self._streams_text or prev_tokens is None or (answer := self._current.last) is None:
            return text
        if answer.n_tokens != self._n_tokens_seen:  # first it looks at the end of the whole answer, as without a stream
            self._n_tokens_seen = answer.n_tokens
            return text
        # it sends nothing more after a byte that is no text, and tries all that it holds back with every token
        return without_broken(text)
