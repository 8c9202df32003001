"""The command line: `ddpm COMMAND`, one module per command."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ddpm_lib.cli.streams import prepare_streams, reader_left
from ddpm_lib.core import spelling

COMMANDS = {
    "audit": "look at a set of images first: copies, leaks, faults, sizes, classes, values",
    "train": "train on your own images, or on the built-in shapes",
    "plan": "write a run.yaml that suits the data, this machine and the hours, with reasons",
    "estimate": "say what a run costs before it starts: memory, disk, hours",
    "sample": "draw images from a run",
    "edit": "redraw images from their noisy versions",
    "inpaint": "paint the masked part of images",
    "restore": "deblur, enlarge, fill in, denoise or colour images",
    "status": "say how all runs stand, or one: running, finished, stopped, failed, …",
    "watch": "draw the curves of a run in the terminal, while it trains",
    "best": "say which checkpoint and which average to use, with the evidence",
    "report": "write the page of a run, or of several side by side: verdict, curves, samples",
    "tune": "choose how a run is sampled in few network calls, and keep it as its default",
    "distill": "tune a run to draw in 1 to 4 steps, and say whether it is as good",
    "ablate": "compare settings: a grid of small trainings, several seeds each",
    "ema": "make weight averages of any length from a run's snapshots",
    "evaluate": "score a run or images: FID, KID, IS, precision, memorisation, bits/dim, …",
    "convert": "make a run of another library's checkpoint",
    "export": "write a run for diffusers, as ONNX, a program of torch.export, or plain weights",
    "compare": "put evaluations of several runs side by side",
    "weights": "list, fetch and verify the weights of published feature extractors",
    "push": "upload a run to the Hugging Face hub, with a card that says what it is",
    "prepare": "make or download a published dataset (sysu, mnist, cifar10, …)",
    "demo": "open a page on this machine on which a run draws",
    "slurm": "write the batch script of a training for a SLURM cluster",
    "doctor": "say what this machine can do, and what is missing",
    "docs": "print a guide: symptoms, training, conditions, clusters, …",
    "completion": "print what completes commands and options in bash, zsh or fish",
}


_READER_LEFT = 128 + 13
"""What shells report of programs that SIGPIPE ended: the work was cut short, as its output was (`|
head`).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: Arguments without the program's name; default: the process's.
    """
    prepare_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    args = _asks_for_help(args)
    if not args or args[0] not in COMMANDS:
        return _top_level(args)
    if args[0] == "train":
        from ddpm_lib.cli.starting import ends_with_a_word

        with ends_with_a_word(args[1:]):
            return _run(args[0], args[1:])
    return _run(args[0], args[1:])


def run_script(main: Callable[[], int]) -> int:
    """Run the main function of a script as commands run: what the user must mend ends it in a
    line, not in a traceback.

    Args:
        main: Returns the exit code.

    Returns:
        Its exit code; else 2 for wrong input, and what commands return for other ends.
    """

    def body() -> int:
        with _plain_warnings():
            return int(main())

    prepare_streams()
    return _in_words(os.path.basename(sys.argv[0]), body)


def _run(name: str, args: list[str]) -> int:
    if name in ("estimate", "plan"):
        _say_loading(name, args)
    command = importlib.import_module(f"ddpm_lib.cli.{name}")

    def body() -> int:
        with spelling.flags(), _plain_warnings():
            return int(command.main(args))

    return _in_words(f"ddpm {name}", body)


def _in_words(name: str, body: Callable[[], int]) -> int:
    try:
        code = body()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _stay_in_group()
        reader_left()
        return _READER_LEFT
    except KeyboardInterrupt:
        _stay_in_group()
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        _stay_in_group()
        told = _for_users(error)
        if told is None:
            raise
        print(f"{name}: {told[1]}", file=sys.stderr)
        return told[0]


def _say_loading(name: str, args: list[str]) -> None:
    """Say at once that a command works, where it first loads torch, which takes seconds."""
    quiet = {"-h", "--help", "--help-all"} & set(args) or os.environ.get("RANK", "0") != "0"
    if "torch" not in sys.modules and not quiet:
        print(f"ddpm {name}: loading torch …", file=sys.stderr, flush=True)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show what is meant for users as a sentence, without the line of code that it comes from."""
    before = warnings.formatwarning

    def plain(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if category is UserWarning:
            return f"warning: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


def _asks_for_help(args: list[str]) -> list[str]:
    """Read `ddpm help train` and `ddpm train help` as `ddpm train --help`."""
    if args[:1] == ["help"]:
        return [*args[1:2], "--help"] if args[1:] else ["--help"]
    if args[1:] == ["help"] and args[0] in COMMANDS and not os.path.exists("help"):
        return [args[0], "--help"]
    return args


def _stay_in_group() -> None:
    rendezvous = sys.modules.get("ddpm_lib.runtime.rendezvous")
    if rendezvous is not None:
        rendezvous.abandon_group()


def _for_users(error: Exception) -> tuple[int, str] | None:
    # A sentence we wrote ourselves says what to do; a traceback around it only hides it. Everything
    # else keeps its traceback.
    text = str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(text)
    ):
        return 2, _out_of_memory(error)
    if isinstance(error, (ValueError, OSError, ImportError)):
        return 2, text
    from ddpm_lib.training import CheckpointError, DivergedError, LostProcessError, OutOfMemoryError

    if isinstance(error, LostProcessError):
        return error.exit_code, text
    return (
        (2, text) if isinstance(error, (CheckpointError, DivergedError, OutOfMemoryError)) else None
    )


_NO_MEMORY = re.compile(
    r"enforce fail at .*alloc|DefaultCPUAllocator|can't allocate memory|Cannot allocate memory"
)


def _out_of_memory(error: Exception) -> str:
    asked = re.search(r"allocate ([\d.,]+ ?(?:[KMGT]i?B|bytes))", str(error))
    size = f" ({asked[1]} more were asked for)" if asked else ""
    return (
        f"the memory of this machine, or what this process may use of it, is not enough{size}. Ask"
        " for less at a time (--batch-size, --image-size), take fewer or smaller images, or a"
        " machine with more; `ddpm estimate` says what a training takes."
    )


def _top_level(args: list[str]) -> int:
    from ddpm_lib import __version__

    if args[:1] in (["--version"], ["-V"], ["version"]):
        print(f"ddpm-lib {__version__}")
        return 0
    if not args:
        from ddpm_lib.cli import home

        return home.show()
    if args[0] not in ("-h", "--help"):
        from ddpm_lib.core.registry import unknown_name

        kind = "option" if args[0].startswith("-") else "command"
        choices = ["--help", "--version"] if kind == "option" else [*COMMANDS]
        print(f"ddpm: {unknown_name(kind, args[0], choices)}", file=sys.stderr)
        return 2
    print(
        _OVERVIEW.format(
            commands="\n".join(f"  {name:12}{text}" for name, text in COMMANDS.items())
        )
    )
    return 0


_OVERVIEW = """usage: ddpm COMMAND …

Train and sample denoising diffusion models on your own images.

examples:
  ddpm train                                   train on the built-in shapes
  ddpm train path/to/images --image-size 64    train on your own images
  ddpm sample runs/shapes --num 64             draw images from a run

commands:
{commands}

`ddpm COMMAND --help` shows examples and options of a command; `ddpm docs` has the guides."""
