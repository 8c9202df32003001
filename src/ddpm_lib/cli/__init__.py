"""The command line: `ddpm COMMAND`, one module per command."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train on your own images, or on the built-in shapes",
    "estimate": "say what a run costs before it starts: memory, disk, hours",
    "sample": "draw images from a run",
    "edit": "redraw images from their noisy versions",
    "inpaint": "paint the masked part of images",
    "status": "say how a run stands: running, finished, stopped, killed, failed",
    "ablate": "compare settings: a grid of small trainings, several seeds each",
    "ema": "make weight averages of any length from a run's snapshots",
    "evaluate": "score a run or images: FID, KID, IS, precision, memorisation, bits/dim, …",
    "compare": "put evaluations of several runs side by side",
    "weights": "list, fetch and verify the weights of published feature extractors",
    "prepare": "make a training set from a published dataset (sysu)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: Arguments without the program's name; default: the process's.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if not args or args[0] not in COMMANDS:
        return _top_level(args)
    command = importlib.import_module(f"ddpm_lib.cli.{args[0]}")
    try:
        return int(command.main(args[1:]))
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; the interpreter must not complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _stay_in_group()
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        _stay_in_group()
        code = _code_for_users(error)
        if code is None:
            raise
        print(f"ddpm {args[0]}: {error}", file=sys.stderr)
        return code


def _stay_in_group() -> None:
    meeting = sys.modules.get("ddpm_lib.training.meeting")
    if meeting is not None:
        meeting.stay()


def _code_for_users(error: Exception) -> int | None:
    # A sentence we wrote ourselves says what to do; a traceback around it only hides it. Everything else keeps its traceback.
    if isinstance(error, (ValueError, OSError, ImportError)):
        return 2
    from ddpm_lib.training import CheckpointError, DivergedError, LostProcessError, OutOfMemoryError

    if isinstance(error, LostProcessError):
        return 75  # "try again": the same command continues
    return 2 if isinstance(error, (CheckpointError, DivergedError, OutOfMemoryError)) else None


def _top_level(args: list[str]) -> int:
    from ddpm_lib import __version__

    lines = "\n".join(f"  {name:10s}{text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="ddpm",
        description="Train and sample denoising diffusion models on your own images.",
        epilog=f"commands:\n{lines}\n\n`ddpm COMMAND --help` shows all options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="ddpm COMMAND …",
    )
    parser.add_argument("--version", action="version", version=f"ddpm-lib {__version__}")
    if args and not args[0].startswith("-"):
        from ddpm_lib.registry import unknown_name

        print(f"ddpm: {unknown_name('command', args[0], COMMANDS)}", file=sys.stderr)
        return 2
    parser.parse_args(args)
    parser.print_help()
    return 0
