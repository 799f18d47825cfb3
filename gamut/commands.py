"""The commands, and how each is typed: `gamut shards` where Gamut is installed, `python -m gamut.shards` in a clone.

Help texts and sentences are written as in a clone; `as_typed` turns them into what the person at the keyboard can type.
"""

from __future__ import annotations

import argparse
import errno
import functools
import os
import re
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from gamut.errors import GamutError
from gamut.processes import let_threads_sleep
from gamut.registry import load_plugins

P = ParamSpec("P")

# name -> (module with its `main`, what it does); `gamut --help` lists them so
COMMANDS = {
    "pretrain": ("pretrain.run", "pretrain a transformer without labels"),
    "finetune": ("finetune.run", "fine-tune and score one, over folds and seeds"),
    "submit": (
        "launchers.slurm",
        "submit a stage, a conversion or an extraction to SLURM, or run it here on all ranks",
    ),
    "jobs": ("launchers.jobs", "the SLURM job of a run: its output, cancel it, submit it again"),
    "shards": ("gamut.shards.__main__", "convert a data set to shards; index, verify, describe and show them"),
    "features": ("gamut.features.__main__", "extract, verify and describe features of frozen encoders"),
    "estimate": ("gamut.estimate.__main__", "what a run would take on GPUs: memory, clips/s, hours, cost"),
    "tag": ("gamut.tag.__main__", "what is heard in recordings, and when; with a Whisper, what is said"),
    "export": ("gamut.export.__main__", "a trained model as a folder that other programs open"),
    "embed": ("gamut.embed.__main__", "vectors of recordings by any trained model, in a file for other programs"),
    "serve": ("gamut.serve.__main__", "a page in the browser that tags what is dropped on it or recorded"),
    "report": ("gamut.report.__main__", "a run, or several side by side, as one page, and as Markdown"),
    "probe": ("gamut.probe.__main__", "score checkpoints by k-NN and linear probe on labelled clips"),
    "analyse": ("gamut.analyse.__main__", "what frozen encoders know, layer by layer, and what noise costs them"),
    "sweep": ("finetune.sweep", "score fine-tuned models over lengths and resolutions"),
    "compare": ("finetune.compare", "compare initialisations under one recipe"),
    "curve": ("finetune.curve", "fine-tune from every kept checkpoint of a pretraining"),
    "table1": ("finetune.table1", "train and score heads on frozen encoders, and count their cost"),
    "study": ("launchers.study", "compare pretraining recipes over tasks and seeds"),
    "benchmarks": ("gamut.benchmarks.__main__", "shard sets as tasks of HEAR and X-ARES, and models scored in them"),
    "masks": ("pretrain.masks", "plot a clip as the student of a pretraining sees it"),
    "runs": ("gamut.runs.__main__", "list, show, compare, prune and verify runs, checkpoints and feature caches"),
    "track": ("gamut.track.__main__", "bring a run's metrics to MLflow"),
    "doctor": ("launchers.doctor", "look at everything that a run needs here, and say what to mend"),
    "demo": ("launchers.demo", "from nothing to a fine-tuned classifier on this machine"),
}

ROOT = Path(__file__).resolve().parents[1]  # the clone, or where the packages are installed
# What a disk says that takes nothing: no room, no right.
REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG}
IN_CLONE = (ROOT / "pyproject.toml").is_file()


def typed(name: str) -> str:
    """How a command, or one of its subcommands, is typed: `gamut shards`, or in a clone `python -m gamut.shards`.

    A clone that is installed, too, knows by what was typed now.
    """
    if not IN_CLONE or Path(sys.argv[0]).name == "gamut":
        return f"gamut {name}"
    name, *more = name.split()
    return " ".join([_in_clone(name), *more])


def as_typed(text: str) -> str:
    """A text with every command in it as it is typed here."""
    for name, (module, _) in COMMANDS.items():
        here, there = typed(name), _in_clone(name)
        if here != there:
            script = re.escape(there.removeprefix("python "))
            text = re.sub(rf"(deepspeed (?:--\S+ \d+ )*){script}\b", rf"\1--module {module}", text)
            text = re.sub(rf"(python )?{script}\b", here, text)
    return text


def parser_of(name: str, about: str | None, epilog: str = "", **options: Any) -> argparse.ArgumentParser:
    """A parser of the command `name`, or of its subcommand; texts keep their lines, and `options` go to argparse."""
    options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
    return argparse.ArgumentParser(typed(name), None, as_typed(about or ""), as_typed(epilog), **options)


def positive(text: str) -> int:
    """A whole number of 1 or more, as the `type` of an option."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def version() -> str | None:
    """Of the installed package; None in a clone that is not installed."""
    from importlib import metadata  # takes longer than the rest of this module

    try:
        return metadata.version("gamut")
    except metadata.PackageNotFoundError:
        return None


def _in_clone(name: str) -> str:
    module = COMMANDS[name][0]
    if module.startswith("gamut."):
        return f"python -m {module.removesuffix('.__main__')}"
    return f"python {module.replace('.', '/')}.py"


def command(main: Callable[P, int | None]) -> Callable[P, int]:
    """Wrap a command's `main`: plugins are loaded before it, and torch's threads will sleep while they wait; a
    `GamutError`, or a disk that takes nothing, becomes its message on stderr and its status (2), a closed pipe the
    end."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        let_threads_sleep()
        try:
            if not {"-h", "--help"} & {*sys.argv}:
                load_plugins()
            status = main(*args, **kwargs) or 0
            sys.stdout.flush()
            return status
        except GamutError as error:
            print(f"error: {as_typed(str(error))}", file=sys.stderr)
            return error.status
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            if not _unread():
                raise
            return 141  # as the shell says of a program that such a pipe ended
        except OSError as error:
            if error.errno not in REFUSED or not error.filename:
                raise
            from gamut.files import refusal  # here: --help need not wait for it

            print(f"error: {refusal(error)} Make room, mend its rights, or name another place.", file=sys.stderr)
            return 2

    return wrapped


def _unread() -> bool:
    """Whether nobody reads what is printed any more, as behind `| head`; the rest of it then goes nowhere."""
    descriptor, poll = sys.stdout.fileno(), select.poll()
    poll.register(descriptor, 0)
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True
