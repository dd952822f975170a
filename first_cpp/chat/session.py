"""A chat session: reads messages and commands, answers, and shows the record of each answer in one dim line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..cli.answer_record import AnswerRecorder
from ..errors import ContextFull, FirstCppError, OptionError
from ..llama import Llama
from ..runtime.fidelity import Fidelity
from ..runtime.routing import picture
from ..runtime.streaming import in_thread
from ..skip import skip_from_text
from .conversation import Conversation
from .reading import Reading
from .terminal import Terminal


class Session:
    """One model, one conversation, one terminal."""

    def __init__(
        self, llm: Llama, conversation: Conversation, terminal: Terminal, sampling: dict[str, Any], reading: Reading
    ) -> None:
        self._llm, self._conversation, self._terminal, self._sampling = llm, conversation, terminal, sampling
        self._reading = reading
        self._recorder = AnswerRecorder(llm)
        self._interrupted = False
        self._commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "/skip": (
                "SHARE",
                "set which layers to skip: auto, none, 0.3 or 7,11; without SHARE: show it",
                self._skip,
            ),
            "/tolerance": (
                "COST",
                "set what one more skipped layer may cost; without COST: show it",
                self._tolerance,
            ),
            "/layers": ("", "layers of the last answer, why, and keep scores as bars", self._layers),
            "/compare": ("", "the last prompt again, dense and routed side by side", self._compare),
            "/fidelity": ("", "the last answer, marked where the full model would have said something else", self._fidelity),
            "/reset": ("", "forget the conversation, except the system message", self._reset),
            "/system": ("TEXT", "set the system message; without TEXT: remove it", self._system),
            "/save": ("FILE", "write the conversation to a file", self._save),
            "/load": ("FILE", "continue a saved conversation", self._load),
            "/help": ("", "show this list", self._help),
            "/quit": ("", "leave, as Ctrl-D does", self._quit),
        }

    def run(self) -> None:
        """Until the input ends, or Ctrl-C comes twice (then KeyboardInterrupt)."""
        if self._terminal.interactive:
            self._terminal.quiet(f"{self._describe_model()}. /help lists the commands, Ctrl-D quits.")
        while True:
            try:
                text = self._terminal.read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._on_interrupt()
                continue
            if not text:
                continue
            self._interrupted = False
            try:
                with self._reading.interrupted():
                    going_on = self._do(text)
                if not going_on:
                    return
            except KeyboardInterrupt:
                self._on_interrupt()

    def _on_interrupt(self) -> None:
        if self._interrupted or not self._terminal.interactive:
            raise KeyboardInterrupt
        self._interrupted = True
        self._terminal.quiet("Ctrl-C again, or Ctrl-D, quits.")

    def _do(self, text: str) -> bool:
        """Answer a message or follow a command; False to quit."""
        name, _, rest = text.partition(" ")
        try:
            if not name.startswith("/"):
                self._ask(text)
            elif name in self._commands:
                self._commands[name][2](rest.strip())
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
        except (FirstCppError, OSError, ValueError) as error:
            self._terminal.error(str(error))
        return True

    # -- answers ----------------------------------------------------------------------------------------------------

    def _ask(self, text: str) -> None:
        self._conversation.ask(text)
        before = self._reading.fidelity
        answer: list[str] = []
        try:
            for part in self._terminal.stream(in_thread(self._llm, self._answer_to(self._conversation.messages))):
                answer.append(part)
        except KeyboardInterrupt:
            self._terminal.end_line()
            self._keep(answer, before)
            raise
        except BaseException:
            self._conversation.take_back()
            raise
        self._terminal.end_line()
        self._keep(answer, before)

    def _keep(self, answer: list[str], before: Fidelity | None) -> None:
        """The text of an answer is part of the conversation, also when the answer was stopped.

        before: the fidelity of the answer before it.
        """
        if not answer:
            self._conversation.take_back()
            return
        self._conversation.answer("".join(answer))
        if (record := self._recorder.record()) is not None:
            self._terminal.quiet(record.line() + (f" · before: {before.line()}" if before is not None else ""))

    def _answer_to(self, messages: list[dict[str, str]]) -> Callable[[], Iterator[str]]:
        create: Any = self._llm.create_chat_completion

        def parts() -> Iterator[str]:
            for chunk in create(list(messages), stream=True, **self._sampling):
                if text := chunk["choices"][0]["delta"].get("content"):
                    yield text

        return parts

    # -- commands ---------------------------------------------------------------------------------------------------

    def _skip(self, text: str) -> None:
        if text:
            self._llm.skip = skip_from_text(text)
        self._terminal.quiet(f"skip is {self._llm.skip!r}")

    def _tolerance(self, text: str) -> None:
        if text:
            self._llm.tolerance = float(text)
        found = self._llm.tolerance
        self._terminal.quiet(
            "nothing predicts costs: no tolerance" if found is None else f"tolerance is {found:g} nats a token"
        )

    def _layers(self, _: str) -> None:
        routing = self._llm.routing
        if routing is None:
            self._terminal.quiet("no prompt was read yet")
            return
        if routing.keep is None and routing.cost is not None:
            self._terminal.quiet(f"{picture(routing.skipped, routing.n_layer)}  {routing.why}")
            return
        if routing.keep is None:
            self._terminal.quiet(f"{picture(routing.skipped, routing.n_layer)}  no keep scores ({routing.why})")
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
        columns = []
        try:
            for title, setting in (("dense", None), (f"skip {skip!r}", skip)):
                self._llm.skip = setting
                self._terminal.quiet(f"answering: {title} ...")
                text = "".join(in_thread(self._llm, self._answer_to(messages)))
                record = self._recorder.record()
                columns.append((title, text, record.line().replace(" · ", "\n") if record else ""))
        finally:
            self._llm.skip = skip
        self._terminal.show(_side_by_side(columns))

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
        self._conversation.save(path)
        self._terminal.quiet(f"{len(self._conversation.messages)} messages saved in {path}")

    def _load(self, path: str) -> None:
        if not path:
            raise OptionError("/load needs a file name")
        self._conversation.load(path)
        self._terminal.quiet(f"{len(self._conversation.messages)} messages read from {path}")

    def _help(self, _: str) -> None:
        lines = [f"{name + ' ' + value:15s} {words}" for name, (value, words, _) in self._commands.items()]
        lines.append('Alt-Enter begins a new line; a text between """ and """ may have many lines.')
        lines.append("Ctrl-C stops an answer and keeps its text, twice it quits; Ctrl-D quits.")
        self._terminal.quiet("\n".join(lines))

    def _quit(self, _: str) -> None:
        raise EOFError

    def _describe_model(self) -> str:
        routers = "with routers" if self._llm.routers else "without routers"
        return f"{self._llm.metadata.get('general.name', self._llm.model_path)}, {routers}, skip {self._llm.skip!r}"


def _side_by_side(columns: list[tuple[str, str, str]]) -> Any:
    """A table of answers; a column is a title, a text, and its record's figures, one a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    for title, *_ in columns:
        table.add_column(title, ratio=1)
    table.add_row(*(Text(text.strip()) for _, text, _ in columns))
    table.add_section()
    table.add_row(*(Text(figures, style="dim") for *_, figures in columns))
    return table
