"""`ddpm demo RUN`: a page on this machine on which a run draws."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from ddpm_lib.cli import options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.text import printable

DESCRIPTION = (
    "Open a page on which a run draws: class, conditions, seed, number, steps, guidance, average."
    " Only this machine can open it (127.0.0.1), nothing is shared or told to anybody; press Ctrl-C"
    " to end it. Needs pip install 'ddpm-lib[demo]'."
)


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Options of `ddpm demo`."""

    run: tyro.conf.Positional[str]
    """A run directory, one of its checkpoints, a pretrained folder, or one of the hub by its name,
    owner/name.
    """
    checkpoint: str = "latest"
    """latest, best (by keep_best), a step (1200) or a name (step-000001200)."""
    cond: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What the page begins with for a condition, once per condition: age=0.3, style=round,
    tags=a|b, mask=m.png; NAME=none, and what is not named, for no value.
    """
    port: int | None = None
    """Port of the page; default: the first free one from 7860 on."""
    host: str = "127.0.0.1"
    """Address to listen at. Any other than 127.0.0.1 lets everybody in who can reach it."""
    device: str = "auto"
    """Where to draw: auto, cpu, cuda, mps, xpu, or cuda:1 for one GPU by its number."""


def main(args: list[str]) -> int:
    """Run the command; it ends by Ctrl-C, with 0."""
    missing: Any = tyro.MISSING
    command: DemoCommand = options.parse(
        DemoCommand, args, DemoCommand(run=missing), "ddpm demo", DESCRIPTION
    )
    if command.checkpoint == "all":
        raise ConfigError("--checkpoint all is several; the page draws from one. Name one of them.")
    if command.port is not None and not 0 < command.port < 65536:
        raise ConfigError(f"--port must be 1 to 65535; got {command.port}.")
    print("loading Gradio and the run …", file=sys.stderr, flush=True)
    from ddpm_lib.cli.demo_page import LOCAL, load_gradio, make_page, start

    load_gradio()  # before torch is loaded

    from ddpm_lib.cli.condition_flags import cond_words
    from ddpm_lib.core.device_choice import resolve_device
    from ddpm_lib.runs.drawing import Artist
    from ddpm_lib.runs.loading import find_checkpoints
    from ddpm_lib.runtime.devices import pick_precision

    device = resolve_device(command.device)
    found = find_checkpoints(command.run, command.checkpoint)[-1]
    artist = Artist(found, device, pick_precision("auto", str(device)))
    cond = cond_words(artist.diffusion, command.cond)
    known = artist.read(cond)
    cond = {name: word for name, word in cond.items() if name in known}
    page = make_page(artist, command.run, command.checkpoint, cond)
    address = start(page, command.host, command.port)
    if command.host not in LOCAL:
        print(
            f"warning: everybody who can reach {printable(command.host)} can use this page.",
            file=sys.stderr,
        )
    print(f"{printable(command.run)} draws at {address}   (Ctrl-C ends it)", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        page.close(verbose=False)
        print("\nThe page is closed.")
    return 0
