"""A chat session: reads messages and commands, answers, and shows the record of each answer in one dim line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

from ..cli.answer_record import AnswerRecord, AnswerRecorder
from ..errors import ContextFull, FirstCppError, OptionError, SkipError
from ..gguf.readable_name import readable_name
from ..llama import Llama
from ..runtime.fidelity import Fidelity
from ..runtime.routing import picture
from ..runtime.streaming import in_thread
from ..skip import Skip, SkipSetting, skip_from_text, skip_in_words
from .conversation import Conversation
from .line_reader import paths
from .reading import Reading
from .sampling_settings import SETTINGS, sampling_line, set_sampling
from .terminal import Terminal

KEYS = {
    "Tab": "completes commands, settings and file names",
    "Alt-Enter": 'begins a new line; a text between """ and """ may have many lines',
    "Ctrl-C": "stops an answer and keeps its text, twice it quits; Ctrl-D quits",
}


@dataclass(frozen=True)
class Command:
    """value: what stands after its name. words: what /help says."""

    value: str
    words: str
    run: Callable[[str], None]


class Session:
    """One model, one conversation, one terminal."""

    def __init__(
        self, llm: Llama, conversation: Conversation, terminal: Terminal, sampling: dict[str, Any], reading: Reading
    ) -> None:
        self._llm, self._conversation, self._terminal, self._sampling = llm, conversation, terminal, sampling
        self._reading = reading
        self._recorder = AnswerRecorder(llm)
        self._interrupted = False
        self._commands = {
            "/skip": Command("SHARE", "which layers to skip: auto, none, 0.3 or 7,11; without SHARE: show it", self._skip),
            "/tolerance": Command("COST", "what one more skipped layer may cost; without COST: show it", self._tolerance),
            "/set": Command("NAME VALUE", "a sampling setting, as temperature 0.2; without: show them", self._set),
            "/layers": Command("", "the last answer's layers, why, and keep scores as bars", self._layers),
            "/compare": Command("", "the last prompt again, greedy, dense and skipping layers", self._compare),
            "/fidelity": Command("", "the last answer, marked where the full model's choice is another", self._fidelity),
            "/system": Command("TEXT", "set the system message; without TEXT: remove it", self._system),
            "/reset": Command("", "forget the conversation, except the system message", self._reset),
            "/save": Command("FILE", "write the conversation to a file", self._save),
            "/load": Command("FILE", "continue a saved conversation", self._load),
            "/help": Command("", "show this list", self._help),
            "/quit": Command("", "leave, as Ctrl-D does", self._quit),
        }
        terminal.complete = self.completions

    def run(self) -> None:
        """Until the input ends, or Ctrl-C comes twice (then KeyboardInterrupt)."""
        if self._terminal.interactive:
            self._terminal.quiet(f"{self._describe_model()}\n/help lists the commands, Ctrl-D quits.")
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Read one message and do what it says; False to quit."""
        try:
            text = self._terminal.read().strip()
            if not text:
                return True
            self._interrupted = False
            with self._terminal.typing_kept(), self._reading.interrupted():
                return self._do(text)
        except EOFError:
            return False
        except KeyboardInterrupt:
            if self._interrupted or not self._terminal.interactive:
                raise
            self._interrupted = True
            self._terminal.quiet("Ctrl-C again, or Ctrl-D, quits.")
            return True

    def _do(self, text: str) -> bool:
        """Answer a message or follow a command; False to quit."""
        name, _, rest = text.partition(" ")
        try:
            if not name.startswith("/"):
                self._ask(text)
            elif name in self._commands:
                self._commands[name].run(rest.strip())
            else:
                self._terminal.error(f"there is no command {name}; /help lists the commands")
        except EOFError:
            return False
        except ContextFull:
            n_ctx = self._llm.n_ctx()
            self._terminal.error(
                f"the conversation no longer fits into the context of {n_ctx} tokens; this message is taken back. "
                "/reset begins a new conversation; first-cpp chat -c TOKENS has a larger context."
            )
        except OSError as error:
            self._terminal.error(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        except (FirstCppError, ValueError) as error:
            self._terminal.error(str(error))
        return True

    def completions(self, line: str) -> list[str]:
        """What may stand in place of the last word of a line that is being typed."""
        command, blank, rest = line.partition(" ")
        if not blank:
            return [name for name in self._commands if name.startswith(line)] if line.startswith("/") else []
        last = rest.rpartition(" ")[2]
        if command in ("/save", "/load"):
            return paths(last)
        words = {"/set": list(SETTINGS), "/skip": ["auto", "none"]}.get(command, [])
        return [word for word in words if word.startswith(last)] if rest == last else []

    # -- answers ----------------------------------------------------------------------------------------------------

    def _ask(self, text: str) -> None:
        self._conversation.ask(text)
        before = self._reading.fidelity
        answer: list[str] = []
        try:
            with self._terminal.answer(lambda: self._llm.prompt_progress) as view:
                for part in in_thread(self._llm, self._answer_to(self._conversation.messages)):
                    answer.append(part)
                    view.add(part)
        except KeyboardInterrupt:
            self._keep(answer, before)
            raise
        except BaseException:
            self._conversation.take_back()
            raise
        self._keep(answer, before)
        if not answer:
            self._terminal.quiet("the model ended its answer at once: this message is taken back")

    def _keep(self, answer: list[str], before: Fidelity | None) -> None:
        """The text of an answer is part of the conversation, also when the answer was stopped.

        before: the fidelity of the answer before it.
        """
        if not answer:
            self._conversation.take_back()
            return
        self._conversation.answer("".join(answer))
        if (record := self._recorder.record()) is not None:
            self._terminal.note(lambda width: _status(record, before, width))

    def _answer_to(
        self, messages: list[dict[str, str]], skip: SkipSetting | EllipsisType = ..., **sampling: Any
    ) -> Callable[[], Iterator[str]]:
        create: Any = self._llm.create_chat_completion
        settings = {**self._sampling, **sampling}

        def parts() -> Iterator[str]:
            for chunk in create(list(messages), stream=True, skip=skip, **settings):
                if text := chunk["choices"][0]["delta"].get("content"):
                    yield text

        return parts

    # -- commands ---------------------------------------------------------------------------------------------------

    def _skip(self, text: str) -> None:
        if text:
            try:
                self._set_skip(skip_from_text(text))
            except SkipError as error:
                raise OptionError(f"/skip {text}: {re.sub('^skip(=.*?)?: ', '', str(error))}") from None
        self._terminal.quiet(f"skip is {skip_in_words(self._llm.skip)}")

    def _set_skip(self, skip: Skip) -> None:
        if isinstance(skip, float) and skip and self._llm.routers is None:
            raise SkipError("a share needs routers, and this model has none; layers by number need none, like /skip 7,11")
        self._llm.skip = skip

    def _tolerance(self, text: str) -> None:
        if text:
            try:
                self._llm.tolerance = float(text)
            except ValueError as error:
                reason = str(error) if isinstance(error, FirstCppError) else "a number of nats a token is needed, like 0.05"
                raise OptionError(f"/tolerance {text}: {reason}") from None
        found = self._llm.tolerance
        self._terminal.quiet(
            "nothing predicts costs: no tolerance" if found is None else f"tolerance is {found:g} nats a token"
        )

    def _set(self, text: str) -> None:
        names = [text] if text else SETTINGS
        lines = [set_sampling(self._sampling, name) for name in names]
        self._terminal.quiet("\n".join(lines))

    def _layers(self, _: str) -> None:
        routing = self._llm.routing
        if routing is None:
            self._terminal.quiet("no prompt was read yet")
            return
        if routing.keep is None:
            why = routing.why if routing.cost is not None else f"no keep scores ({routing.why})"
            self._terminal.quiet(f"{picture(routing.skipped, routing.n_layer)}  {why}")
            return
        for layer, keep in enumerate(routing.keep):
            skipped = "  skipped" if layer in routing.skipped else ""
            self._terminal.quiet(f"{layer:3d} {keep:.3f} {'█' * round(keep * 40):40s}{skipped}")
        self._terminal.quiet(routing.why)

    def _compare(self, _: str) -> None:
        messages = self._conversation.last_question()
        if not messages:
            self._terminal.quiet("nothing was asked yet")
            return
        skip = self._llm.skip
        if (why := self._why_dense(messages)) is not None:
            self._terminal.quiet(f"nothing to compare: {why}")
            if skip == "auto" and self._llm.routers is not None:
                dearer = " or /tolerance COST, a larger one," if self._llm.routers.cost is not None else ""
                self._terminal.quiet(f"/skip 0.1{dearer} skips layers all the same")
            return
        sides: list[tuple[str, SkipSetting]] = [("dense", None), (f"skip {skip_in_words(skip)}", skip)]
        with self._terminal.comparison([title for title, _ in sides], lambda: self._llm.prompt_progress) as view:
            for _, setting in sides:
                for part in in_thread(self._llm, self._answer_to(messages, skip=setting, temperature=0.0)):
                    view.add(part)
                view.end(self._recorder.record())

    def _why_dense(self, messages: list[dict[str, str]]) -> str | None:
        """Why an answer to them would skip nothing; None where it would skip layers. Reads them, once for the answers, too."""
        for _ in in_thread(self._llm, self._answer_to(messages, max_tokens=1, temperature=0.0)):
            pass
        routing = self._llm.routing
        return None if routing is None or routing.skipped else routing.why

    def _fidelity(self, _: str) -> None:
        self._terminal.quiet(self._reading.report())

    def _reset(self, _: str) -> None:
        self._conversation.clear()
        self._terminal.quiet("forgotten")

    def _system(self, text: str) -> None:
        self._conversation.system = text or None
        self._terminal.quiet("the system message is set" if text else "no system message")

    def _save(self, path: str) -> None:
        if not path:
            raise OptionError("/save needs a file name")
        path = os.path.expanduser(path)
        if os.path.isfile(path) and not self._terminal.agrees(f"{path} exists: replace it", "/save it under another name"):
            self._terminal.quiet("not saved")
            return
        self._conversation.save(path)
        self._terminal.quiet(f"{self._n_messages()} saved in {path}")

    def _load(self, path: str) -> None:
        if not path:
            raise OptionError("/load needs a file name")
        self._conversation.load(os.path.expanduser(path))
        self._terminal.quiet(f"{self._n_messages()} read from {path}")

    def _n_messages(self) -> str:
        n = len(self._conversation.messages)
        return f"{n} message{'s' * (n != 1)}"

    def _help(self, _: str) -> None:
        from rich.table import Table

        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(style="dim")
        for name, command in self._commands.items():
            table.add_row(f"{name} {command.value}", command.words)
        table.add_row()
        for setting, (_parse, meaning) in SETTINGS.items():
            table.add_row(f"/set {setting}", f"{sampling_line(self._sampling, setting).partition(' ')[2]} ({meaning})")
        table.add_row()
        for key, words in KEYS.items():
            table.add_row(key, words)
        self._terminal.show(table)

    def _quit(self, _: str) -> None:
        raise EOFError

    def _describe_model(self) -> str:
        name = readable_name(self._llm.metadata, self._llm.model_path)
        if self._llm.dense_because:
            return f"{name}, dense: {self._llm.dense_because}"
        if self._llm.routers is None and self._llm.skip == "auto":
            return f"{name}, without routers: dense (/skip 7,11 skips layers)"
        routers = "with routers" if self._llm.routers else "without routers"
        return f"{name}, {routers}, skip {skip_in_words(self._llm.skip)}"


def _status(record: AnswerRecord, before: Fidelity | None, width: int | None) -> str:
    """The line under an answer, of two lines where one has too few columns. before: the fidelity of the answer before."""
    line = record.line(width)
    more = "" if before is None else f"before: {before.line()}"
    fits = width is None or len(line) + len(more) + 3 <= width
    return line + (more and f"{' · ' if fits else chr(10)}{more}")
