"""From a file of examples to a tuned model that answers faster, in one command, with a table beside the model as it came.

Finds the layers that the model can spare on your prompts (calibrate), trains a LoRA that makes up for them (train), folds it
into the weights in the model's own file type, calibrates the result, and lets both answer the examples kept for it (eval).
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence

from ..cli.duration import in_words
from ..cli.execute import add_debug
from ..cli.extras import need_extra
from ..cli.folder_lock import locked_folder
from ..cli.model_name import HELP, add_offline, find_model
from ..cli.options import number, whole_number
from ..errors import ModelFileError, OptionError
from ..gguf.lora import check_architecture
from ..gguf.model_file import ModelFile
from ..gguf.new_file import check_folder
from ..gguf.quantise import NEED_MATRIX, file_type, stored_type
from ..runtime.arguments import MOST_THREADS
from ..runtime.machine import physical_cores
from .examples_split import Split, read_records, split
from .job import FILES, Job, Settings, check_same_job, epochs_for
from .lengths import longest
from .stages import LOG, Stage, run_stages
from .summary import summary

EPILOG = """examples:
  first-cpp tune data.jsonl -m model.gguf
  first-cpp tune data.jsonl -m model.gguf --out mine --epochs 3 --minutes 5

Each line of data is an object with prompt, response and, of several, task; some
are kept for the report (--test FILE brings others). Ctrl-C stops; the same
command goes on from there.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments of the verb."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("data", nargs="+", metavar="JSONL", help="your examples: lines with prompt and response")
    add("-m", "--model", metavar="MODEL", help=f"{HELP} (default: the one of the demo extra)")
    add_offline(add)
    add("--out", default="tuned", metavar="DIR", help="folder for all that is written (default: %(default)s)")
    add("--valid", nargs="+", metavar="JSONL", help="validation data (default: a tenth of the examples)")
    add("--test", nargs="+", metavar="JSONL", help="test data (default: a fifth of the examples)")
    add("--epochs", type=number(0.01), metavar="X", help="times to train on the examples (default: more where they are few)")
    add("--rank", type=whole_number(1), default=16, metavar="N", help="of the LoRA (default: %(default)s)")
    add("--lr", type=number(1e-9, 1), default=Settings.lr, metavar="X", help="learning rate (default: %(default)s)")
    add("--minutes", type=number(0.1), default=1.0, metavar="N", help="for each of two calibrations (default: %(default)g)")
    add("--quantize", metavar="TYPE", help="file type of the tuned model (default: the model's own)")
    add("-t", "--threads", type=whole_number(1, MOST_THREADS), metavar="N", help="threads (default: physical cores)")
    add("--seed", type=whole_number(0), default=0, metavar="N", help="of the split and of training (default: %(default)s)")
    add("--quiet", action="store_true", help="no plan and no progress")
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    """Check everything, show the plan, do what is not done yet, show the table.

    Raises DataError for examples that cannot be used, ModelFileError for a model that cannot be tuned, OptionError for a folder
    that holds another tuning, MissingExtraError without the extras train and eval, and what the stages raise.
    """
    need_extra("tune", "tune", "torch", "transformers", "peft", "accelerate", "matplotlib", "rouge_score", "sacrebleu")
    check_folder(args.out, FILES)
    parts = _read(args)
    model = ModelFile.open(find_model(args.model, args.offline))
    kind = _check_model(model, args.quantize)
    settings = Settings(kind, args.rank, args.lr, args.minutes, args.epochs or epochs_for(len(parts.train)), args.seed)
    with locked_folder(args.out):
        check_same_job(args.out, model, parts, settings)
        parts.write(args.out)
        lengths = longest(model, parts)
        job = Job(model, args.out, parts, settings, lengths, args.threads or physical_cores(), args.quiet)
        stages = job.stages()
        if not args.quiet:
            print(_plan(args.data, job, stages), file=sys.stderr)
        run_stages(stages, args.out, _silent if args.quiet else _say)
        print(summary(job))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(_line: str) -> None:
    pass


def _check_model(model: ModelFile, wanted: str | None) -> str:
    """The file type of the tuned model. Raises ModelFileError, LoraError or OptionError for what would fail at a late stage."""
    if len(model.files) > 1:
        raise ModelFileError(f"{model.path} is split in {len(model.files)} files; merge it with llama-gguf-split first")
    check_architecture(model.architecture)
    kind = (wanted or stored_type(model) or "").upper()
    if not kind:
        raise OptionError(f"{model.path} is of a file type that is not known; name one with --quantize, such as Q4_0 or Q8_0")
    file_type(kind)  # raises
    if kind in NEED_MATRIX:
        what = "--quantize" if wanted else f"{model.path} is"
        raise OptionError(f"{what} {kind}, which needs an importance matrix; give another --quantize, such as Q4_0 or Q8_0")
    return kind


def _read(args: argparse.Namespace) -> Split:
    valid, test = (read_records(paths) if paths else None for paths in (args.valid, args.test))
    return split(read_records(args.data), args.seed, valid, test)


def _plan(data: Sequence[str], job: Job, stages: Sequence[Stage]) -> str:
    """What is about to happen. How long training and report take is measured by these stages, which say it themselves."""
    parts, tasks = job.parts, job.parts.tasks
    kinds = f" of {len(tasks)} tasks" if len(tasks) > 1 else ""
    dropped = f"; {parts.dropped} said twice, dropped" if parts.dropped else ""
    ahead = list(dict.fromkeys(one.name for one in stages if not one.done))
    minutes = (
        f"calibrate: about {in_words(60 * job.settings.minutes)} each, more with a large model" if "calibrate" in ahead else ""
    )
    later = " and ".join(name for name in ("train", "eval") if name in ahead)
    times = "; ".join(filter(None, (minutes, later and f"{later}: measured and said as each begins")))
    return "\n".join(
        [
            f"plan: {', '.join(map(os.path.basename, data))}: {sum(tasks.values())} examples{kinds}{dropped}",
            f"      {len(parts.train)} to train, {len(parts.valid)} to validate, {len(parts.test)} to test; "
            f"prompts of at most {job.lengths.prompt} tokens",
            *(f"  {i}. {one.name:<10} {one.what}" + (" (done)" if one.done else "") for i, one in enumerate(stages, 1)),
            *textwrap.wrap(
                f"{times and f'time: {times}. '}All into {job.out}/ (details in {LOG}); Ctrl-C stops, and the same command "
                "goes on from there",
                80,
                initial_indent=6 * " ",
                subsequent_indent=6 * " ",
                break_long_words=False,
                break_on_hyphens=False,
            ),
        ]
    )
