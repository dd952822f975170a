"""Measure the quality that skipping keeps: the quantised model answers test data at each share, beside baselines.

Writes report.json, report.md, quality.png, layers.png and answers.jsonl; a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..cli.duration import in_words
from ..cli.execute import add_debug
from ..cli.extras import need_extra
from ..cli.model_name import HELP, add_offline, find_models
from ..cli.next_commands import next_commands
from ..cli.options import shares_from_text, whole_number
from ..errors import MissingFileError, OptionError
from ..gguf.lora_file import carries_lora
from ..gguf.model_file import ModelFile
from ..gguf.new_file import check_folder
from ..runtime.arguments import MOST_THREADS
from ..runtime.machine import describe_machine, physical_cores
from ..skip import FIXED
from ..streams import MOST_STREAMS

if TYPE_CHECKING:
    from .answer_file import AnswerFile
    from .questions import Question
    from .rows import Row

EPILOG = """examples:
  first-cpp eval --model model-first.gguf --data test.jsonl --skip 0,0.25 \\
      --base model.gguf --baselines even,last --out report/ -n 16
  first-cpp eval --model model-first.gguf --data test.jsonl \\
      --row tuned=dense.gguf --reference tuned --out report2/ -n 16

Tasks are scored by what they are: translation (BLEU, chrF), tldr (ROUGE-L, best
reference), dialogue (ROUGE-L, mean over references), qa (F1, exact match);
--metric names it for others. Tasks of prompts alone are scored by fidelity:
the share of positions of the dense model's own answer (row dense) at which a
row's first choice is the token there. Beside it stand, for all tasks, how far
greedy answers agree with the dense ones before they part, how many end in a
loop, and how many the limit of tokens cut off. Answers come one at a time and
are timed; --streams decodes several together, for many questions.

Rows: base is the model as it came (--base, or --model where --routers brings a
LoRA), dense the trained model with nothing skipped, routed@SHARE what the
routers choose; where the file has cost probes (first-cpp calibrate),
budget@SHARE lets each prompt skip what it can spare, SHARE on average, and
auto is what the file recommends ("skipped" is the mean share that was).
NAME=FILE@SKIP adds another model: a LoRA trained dense, or trained for a fixed
set of layers. SKIP: a share for a file with routers, auto, layers, or
KIND:SHARE with KIND a baseline, "search" or "given"; where the file was trained
for a set of that kind (first-cpp train --layers), it is that set. budget:SHARE
is what prompts can spare by the file's cost probes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments of the verb."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    _add_rows(parser)
    _add_data(parser)
    _add_settings(parser)
    add_debug(parser)


def _add_rows(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("rows").add_argument
    add("-m", "--model", required=True, metavar="MODEL", help=f"{HELP}, with routers in it, or --routers beside it")
    add_offline(add)
    add("--routers", metavar="FILE", help="a GGUF file to take routers from")
    add("--base", metavar="MODEL", help="the model as it came, before training: the first row")
    add(
        "--skip", default="0,0.1,0.25,0.4", metavar="SHARE,...", help="skip shares to evaluate, and auto (default: %(default)s)"
    )
    add("--baselines", default="none", metavar="NAME,...", help=f"{', '.join(FIXED)}; all or none (default: none)")
    add("--calibrate", nargs="*", default=[], metavar="JSONL", help="training data: block influence is measured on its prompts")
    add("--row", action="append", default=[], metavar="NAME=FILE[@SKIP]", help="another model beside; can be repeated")
    add("--reference", default="dense", metavar="ROW", help="the row that scores are divided by (default: %(default)s)")


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("questions and answers").add_argument
    add("--data", required=True, nargs="+", metavar="JSONL", help="test data: task, prompt, response, maybe references; or "
        "prompts alone, scored by the dense model's own answers")  # fmt: skip
    add("--metric", action="append", default=[], metavar="TASK=KIND", help="translation, summary, summary-mean, answer, or "
        "fidelity (to the dense model's own answers)")  # fmt: skip
    add("--limit", type=whole_number(1), metavar="N", help="only the first N lines of each file")
    add("-n", "--max-tokens", type=whole_number(1), default=128, metavar="N", help="longest answer (default: %(default)s)")
    add("--kl", type=whole_number(0), default=10, metavar="N", help="questions of each task to take KL and fidelity over "
        "(default: %(default)s)")  # fmt: skip
    add("--streams", type=whole_number(1, MOST_STREAMS), default=1, metavar="N", help="decode up to N answers together, "
        f"at most {MOST_STREAMS}, fewer of long ones: sooner done, but without TPOT (default: one at a time)")  # fmt: skip
    add("--out", required=True, metavar="DIR", help="folder for the report")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("settings").add_argument
    add("-c", "--ctx", type=whole_number(8), metavar="TOKENS", help="context length (default: the model's, at most 4096)")
    add("-t", "--threads", type=whole_number(1, MOST_THREADS), metavar="N", help="threads (default: physical cores)")
    add("--draws", type=whole_number(10), default=1000, metavar="N", help="of the bootstrap (default: %(default)s)")
    add("--seed", type=whole_number(0), default=0, metavar="N", help="of the bootstrap and of the random baseline (default: 0)")
    add("--quiet", action="store_true", help="no plan and no progress bar")


def command(args: argparse.Namespace) -> None:
    """Check everything, answer what is missing, report."""
    need_extra("eval", "eval", "matplotlib", "rouge_score", "sacrebleu")
    from .metrics import FIDELITY, kinds_of_tasks
    from .questions import check_references, read_questions, tasks_of_prompts
    from .report import FILES, draw, markdown, summarise, write
    from .rows import BASE, check_comparable

    check_folder(args.out, FILES)
    questions = read_questions(args.data, args.limit)
    tasks = dict.fromkeys(question.task for question in questions)
    kinds = kinds_of_tasks(args.metric, list(tasks), tasks_of_prompts(questions))
    by_fidelity = [task for task in tasks if kinds[task] == FIDELITY]
    check_references(questions, by_fidelity)
    find_models(args, "model", "routers", "base")
    settings = _settings(args)
    rows = _rows(args)
    if args.reference not in [row.name for row in rows]:
        raise OptionError(f"--reference {args.reference} is no row; rows are {', '.join(row.name for row in rows)}")
    check_comparable(rows, by_fidelity)
    answers = _answer(args, rows, questions, settings, by_fidelity)
    record = summarise(rows, questions, answers, kinds, args.reference, args.draws, args.seed)
    record |= _origin()
    write(record, args.out)
    pictures = draw(record, args.out)
    print(markdown(record))
    print(f"written to {args.out}: {', '.join(['report.md', 'report.json', *pictures, 'answers.jsonl'])}")
    if rows[0].name != BASE:
        print("no row is the model as it came: --base FILE adds it, and the answers above are kept")
    model = ["-m", args.model, *(["--routers", args.routers] if args.routers else [])]
    print(next_commands(*(["first-cpp", verb, *model] for verb in ("chat", "serve"))))


def _origin() -> dict[str, str]:
    import llama_cpp

    return {
        "command": shlex.join(["first-cpp", *sys.argv[1:]]),
        "machine": describe_machine(),
        "first_cpp": __version__,
        "llama_cpp_python": llama_cpp.__version__,
    }


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of Llama. Raises MissingFileError for a file that is not there."""
    for path in [args.model, *filter(None, (args.routers, args.base)), *args.calibrate]:
        if not os.path.isfile(path):
            raise MissingFileError(f"there is no file {path}")
    threads = args.threads or physical_cores()
    n_ctx = args.ctx or ModelFile.open(args.model).default_context
    return {"n_ctx": n_ctx, "n_threads": threads, "n_threads_batch": threads, "verbose": False}


def _rows(args: argparse.Namespace) -> list[Row]:
    from .rows import RowPlan

    asked = [part.strip() for part in args.skip.split(",")]
    numbers = [part for part in asked if part != "auto"]
    base = args.base or (args.model if args.routers and carries_lora(args.routers) else None)
    return RowPlan(
        model=args.model,
        routers=args.routers,
        base=base,
        shares=shares_from_text(",".join(numbers)) if numbers else [],
        auto="auto" in asked,
        baselines=list(FIXED) if args.baselines == "all" else _names(args.baselines),
        given=args.row,
        influence=functools.cache(functools.partial(_influence_order, args)),
        seed=args.seed,
    ).rows()


def _names(text: str) -> list[str]:
    """Names as typed, each once; of none, none."""
    return [name for name in dict.fromkeys(part.strip() for part in text.split(",")) if name != "none"]


def _influence_order(args: argparse.Namespace, model: str, routers: str | None) -> list[int]:
    """All layers of a model, with the LoRA of a side file, from the least block influence up (ShortGPT: 1 - cosine of input and
    output), over training prompts."""
    if not args.calibrate:
        raise OptionError("--baselines influence needs --calibrate train.jsonl: it is never measured on the test data")
    from ..llama import Llama
    from ..runtime.block_influence import MAX_TOKENS, block_influence
    from .questions import read_questions

    prompts = [question.prompt.replace("\n", " ").strip() for question in read_questions(args.calibrate, 32)]
    llm = Llama(model, routers=routers, n_ctx=MAX_TOKENS, skip=None, verbose=False)
    try:
        influence, _ = block_influence(llm, prompts)
    finally:
        llm.close()
    return [int(layer) for layer in influence.argsort(kind="stable")]


def _answer(
    args: argparse.Namespace, rows: list[Row], questions: list[Question], settings: dict[str, Any], by_fidelity: list[str]
) -> AnswerFile:
    """Answer what is missing, with a plan before and one bar over all of it. by_fidelity: the tasks scored by it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..llama import Llama
    from ..runtime.probe import check_answers
    from .answer_file import AnswerFile, check_same_run
    from .asking import Against, answer_all, measured_questions
    from .rows import DENSE
    from .several import Several

    os.makedirs(args.out, exist_ok=True)
    depends_on = _what_answers_depend_on(args, rows, questions, settings)
    check_same_run(args.out, depends_on | {"tasks scored by fidelity": by_fidelity})
    answers = AnswerFile(os.path.join(args.out, "answers.jsonl"))
    n_missing = sum(map(len, answers.missing(rows, len(questions))))
    if not n_missing:
        return answers
    dense = next(row for row in rows if row.name == DENSE)
    measured = measured_questions(questions, args.kl, by_fidelity)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with contextlib.ExitStack() as opened:
        llm = opened.enter_context(contextlib.closing(Llama(dense.file, routers=dense.routers, skip=None, **settings)))
        check_answers(llm)
        if not args.quiet:
            console.print(_plan(args, llm, rows, questions, answers, measured), highlight=False)
        progress = Progress(*columns, console=console, disable=args.quiet or not console.is_terminal)
        opened.enter_context(progress)
        total = len(rows) * len(questions)
        bar = progress.add_task("answering", total=total, completed=total - n_missing)

        def step(row: Row) -> None:
            progress.update(bar, advance=1, description=row.name)

        if args.streams > 1:
            llm.close()  # its memory is for the streams
            how = (settings, args.max_tokens, dense, measured, args.streams, step)
            Several(rows, questions, answers, *how).answer_all()
            return answers
        against = Against(dense, llm, measured) if measured else None
        for model in dict.fromkeys((row.file, row.routers) for row in rows):
            here = [row for row in rows if (row.file, row.routers) == model]
            answer_all(here, questions, answers, settings, args.max_tokens, against, step)
    return answers


def _plan(
    args: argparse.Namespace,
    llm: Any,
    rows: list[Row],
    questions: list[Question],
    answers: AnswerFile,
    measured: frozenset[int],
) -> str:
    """What is about to happen, and how long it takes at most. measured: questions that are followed along the dense answer."""
    from ..streams.engine import streams_for
    from .estimate import Pace, longest_seconds, prompt_lengths

    pace = Pace.of(llm, questions[0])
    missing = answers.missing(rows, len(questions))
    lengths = prompt_lengths(llm, questions)
    if args.streams > 1:
        pace = pace.together(streams_for(min(llm.n_ctx(), max(lengths) + args.max_tokens + 1), args.streams))
    seconds = longest_seconds(pace, missing, lengths, args.max_tokens, measured)
    n_missing = sum(map(len, missing))
    there = len(rows) * len(questions) - n_missing
    lines = [
        f"plan: {len(rows)} rows ({', '.join(row.name for row in rows)})",
        f"      {len(questions)} questions, {n_missing} answers of at most {args.max_tokens} tokens"
        + (f"; {there} are there already" if there else ""),
        f"      at most {in_words(seconds)}; a run that is stopped goes on where it was",
    ]
    return "\n".join(lines)


def _what_answers_depend_on(
    args: argparse.Namespace, rows: list[Row], questions: list[Question], settings: dict[str, Any]
) -> dict[str, Any]:
    return {
        "questions": hashlib.sha256(repr([(q.task, q.prompt) for q in questions]).encode()).hexdigest(),
        "max_tokens": args.max_tokens,
        "kl": args.kl,
        "seed": args.seed,
        "ctx": settings["n_ctx"],
        "threads": settings["n_threads"],
        "streams": args.streams if args.streams > 1 else None,
        "rows": {row.name: row.identity() for row in rows},
    }
