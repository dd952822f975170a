"""Measure the quality that skipping keeps: the quantised model answers test data at each share, beside baselines.

Writes report.json, report.md, quality.png, layers.png and answers.jsonl; a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..cli.execute import add_debug
from ..cli.options import shares_from_text, whole_number
from ..errors import FirstCppError, MissingExtraError, MissingFileError
from ..gguf.model_file import ModelFile
from ..runtime.arguments import MOST_THREADS
from ..runtime.machine import describe_machine, physical_cores
from ..skip import FIXED, fixed_layers, layers_for_share

if TYPE_CHECKING:
    from .questions import Question
    from .rows import Row

EPILOG = """examples:
  first-cpp eval --model model-first.gguf --data test.jsonl --skip 0,0.25 --baselines even,last --out report/ -n 16
  first-cpp eval --model model-first.gguf --data test.jsonl --row tuned=dense.gguf --reference tuned --out report2/ -n 16

Tasks are scored by what they are: translation (BLEU, chrF), tldr (ROUGE-L, best reference), dialogue (ROUGE-L, mean over
references), qa (F1, exact match); --metric says it for others. A row NAME=FILE@SKIP compares any other model: a LoRA trained
dense, or trained for a fixed set of layers. SKIP: a share for a file with routers, layers, or KIND:SHARE with KIND a baseline
or "search" or "given"; where the file was trained for a set of that kind (first-cpp train --layers), it is that very set.
"""


class EvalUsage(FirstCppError, ValueError):
    """Options that do not go together, or an output folder of another evaluation."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="a GGUF with routers, or with --routers beside it")
    add("--routers", metavar="FILE", help="a GGUF file to take routers from")
    add("--data", required=True, nargs="+", metavar="JSONL", help="test data: task, prompt, response, maybe references")
    add("--skip", default="0,0.1,0.25,0.4", metavar="SHARE,...", help="shares to evaluate (default: %(default)s)")
    add("--baselines", default="none", metavar="NAME,...", help="influence, even, random, last; all or none (default: none)")
    add(
        "--calibrate", nargs="*", default=[], metavar="JSONL", help="training data whose prompts block influence is measured on"
    )
    add("--row", action="append", default=[], metavar="NAME=FILE[@SKIP]", help="another model beside; can be repeated")
    add("--reference", default="dense", metavar="ROW", help="the row that scores are divided by (default: %(default)s)")
    add("--metric", action="append", default=[], metavar="TASK=KIND", help="translation, summary, summary-mean or answer")
    add("--out", required=True, metavar="DIR", help="folder for the report")
    add("--limit", type=whole_number(1), metavar="N", help="only the first N lines of each file")
    add("-n", "--max-tokens", type=whole_number(1), default=128, help="longest answer (default: %(default)s)")
    add(
        "--kl",
        type=whole_number(0),
        default=10,
        metavar="N",
        help="questions of each task to take KL over (default: %(default)s)",
    )
    add("--draws", type=whole_number(10), default=1000, help="of the bootstrap (default: %(default)s)")
    add("--seed", type=whole_number(0), default=0, help="of the bootstrap and of the random baseline (default: %(default)s)")
    add("-c", "--ctx", type=whole_number(8), metavar="TOKENS", help="context length (default: the model's, at most 4096)")
    add("-t", "--threads", type=whole_number(1, MOST_THREADS), metavar="N", help="threads (default: physical cores)")
    add("--quiet", action="store_true", help="no progress bar")
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    try:
        import matplotlib  # noqa: F401
        import rouge_score  # noqa: F401
        import sacrebleu  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f'eval needs more packages ({error}): pip install "first-cpp[eval]"') from error
    from .questions import read_questions
    from .report import draw, summarise, write

    questions = read_questions(args.data, args.limit)
    kinds = _kinds(args, questions)
    settings = _settings(args)
    rows = _rows(args, settings)
    if args.reference not in [row.name for row in rows]:
        raise EvalUsage(f"--reference {args.reference} is no row; rows are {', '.join(row.name for row in rows)}")
    answers = _answer(args, rows, questions, settings)
    record = summarise(rows, questions, answers, kinds, args.reference, args.draws, args.seed)
    import llama_cpp

    record["command"] = " ".join(["first-cpp", *sys.argv[1:]])
    record.update(machine=describe_machine(), first_cpp=__version__, llama_cpp_python=llama_cpp.__version__)
    write(record, args.out)
    draw(record, args.out)
    with open(os.path.join(args.out, "report.md"), encoding="utf-8") as file:
        print(file.read())


def _kinds(args: argparse.Namespace, questions: list[Question]) -> dict[str, str]:
    from .metrics import KIND_OF_TASK, METRICS

    kinds = dict(KIND_OF_TASK)
    for text in args.metric:
        task, sign, kind = text.partition("=")
        if not sign or kind not in METRICS:
            raise EvalUsage(f"--metric {text!r} is not TASK=KIND with KIND one of {', '.join(METRICS)}")
        kinds[task] = kind
    for task in dict.fromkeys(question.task for question in questions):
        if task not in kinds:
            raise EvalUsage(f"how is task {task!r} scored? Give --metric {task}=KIND, one of {', '.join(METRICS)}")
    return kinds


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    threads = args.threads or physical_cores()
    for path in [args.model, *([args.routers] if args.routers else []), *args.calibrate]:
        if not os.path.isfile(path):
            raise MissingFileError(f"there is no file {path}")
    n_ctx = args.ctx or ModelFile.open(args.model).default_context
    return {"n_ctx": n_ctx, "n_threads": threads, "n_threads_batch": threads, "verbose": False}


def _rows(args: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """dense, the routed rows, the baselines at the same shares, and the rows given."""
    from ..gguf.router_format import load_routers
    from .rows import Row, parse_row

    shares = shares_from_text(args.skip)
    n_layer = ModelFile.open(args.model).n_layer
    names = list(FIXED) if args.baselines == "all" else [n for n in args.baselines.split(",") if n != "none"]
    influence = functools.cache(functools.partial(_influence_order, args))
    rows = [Row("dense", args.model, 0.0, None, args.routers)]
    for share in (share for share in shares if share > 0):
        layers_for_share(share, n_layer)  # raises when none would stay
        rows.append(Row(f"routed@{share:g}", args.model, share, share, args.routers))
        for name in names:
            layers = fixed_layers(name, share, n_layer, influence() if name == "influence" else (), args.seed)
            rows.append(Row(f"{name}@{share:g}", args.model, share, layers, args.routers))
    for row in [parse_row(text, n_layer, influence, args.seed) for text in args.row]:
        if isinstance(row.skip, float):
            load_routers(row.file)  # raises where there are none that a share could go by
        if row.name in [other.name for other in rows]:
            raise EvalUsage(f"--row {row.name}: there is a row of this name already")
        rows.append(row)
    return rows


def _influence_order(args: argparse.Namespace) -> list[int]:
    """All layers from the least block influence up (ShortGPT: 1 - cosine of input and output), over training prompts."""
    if not args.calibrate:
        raise EvalUsage("--baselines influence needs --calibrate train.jsonl: it is never measured on the test data")
    from ..llama import Llama
    from ..runtime.block_influence import MAX_TOKENS, influence_routers
    from .questions import read_questions

    prompts = [question.prompt.replace("\n", " ").strip() for question in read_questions(args.calibrate, 32)]
    llm = Llama(args.model, n_ctx=MAX_TOKENS, skip=None, verbose=False)
    try:
        return [int(layer) for layer in influence_routers(llm, prompts).bias.argsort(kind="stable")]
    finally:
        llm.close()


def _answer(args: argparse.Namespace, rows: list[Row], questions: list[Question], settings: dict[str, Any]) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..llama import Llama
    from .answers import Answers, answer_all

    os.makedirs(args.out, exist_ok=True)
    _check_same_run(args, rows, questions, settings)
    answers = Answers(os.path.join(args.out, "answers.jsonl"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    dense = Llama(args.model, routers=args.routers, skip=None, **settings) if args.kl else None
    try:
        with Progress(*columns, disable=args.quiet or not sys.stderr.isatty()) as progress:
            bars = {
                row.name: progress.add_task(
                    row.name,
                    total=len(questions),
                    completed=sum((row.name, number) in answers.found for number in range(len(questions))),
                )
                for row in rows
            }

            def step(row: Row) -> None:
                progress.advance(bars[row.name])

            for model in dict.fromkeys((row.file, row.routers) for row in rows):
                here = [row for row in rows if (row.file, row.routers) == model]
                answer_all(here, questions, answers, settings, args.max_tokens, dense, args.kl, step)
    finally:
        if dense is not None:
            dense.close()
    return answers


def _check_same_run(args: argparse.Namespace, rows: list[Row], questions: list[Question], settings: dict[str, Any]) -> None:
    """Answers of other models, layers or questions are not mixed in; rows may be added."""
    import hashlib

    mine = {
        "questions": hashlib.sha256(repr([(q.task, q.prompt) for q in questions]).encode()).hexdigest(),
        "max_tokens": args.max_tokens,
        "kl": args.kl,
        "seed": args.seed,
        "ctx": settings["n_ctx"],
        "threads": settings["n_threads"],
        "rows": {row.name: row.identity() for row in rows},
    }
    path = os.path.join(args.out, "run.json")
    answered = os.path.exists(os.path.join(args.out, "answers.jsonl"))
    if answered and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        kept = before.get("rows", {})
        different = [key for key in mine if key != "rows" and before.get(key) != mine[key]]
        different += [f"row {name}" for name, what in mine["rows"].items() if kept.get(name, what) != what]
        if different:
            raise EvalUsage(f"--out {args.out} holds an evaluation with other {', '.join(different)}; choose another folder")
        mine["rows"] = kept | mine["rows"]
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(mine, file)
    os.replace(path + ".part", path)
