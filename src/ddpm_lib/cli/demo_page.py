"""The page of `ddpm demo`, by Gradio: what it shows, and the server on this machine alone."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddpm_lib.cli.demo_controls import Control, make_controls, words_of
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.runs.drawing import MOST, Artist, Wish

IN_TURN = "in turn"
TILES = """.grid-container {
    grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)) !important;
}"""
"""As many pictures side by side as there is room for, also on a telephone."""

LOCAL = ("127.0.0.1", "localhost", "::1")


def load_gradio() -> Any:
    """Import Gradio so that it tells nobody and asks nobody for updates.

    Raises:
        ConfigError: If it is not here.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ConfigError(
            "The page is made by Gradio, which is not here: pip install 'ddpm-lib[demo]'."
            " `ddpm sample` draws without it."
        ) from None
    return gradio


def command_of(run: str, checkpoint: str, wish: Wish) -> str:
    """Return the command that draws what was wished."""
    words = ["ddpm", "sample", run, "--num", str(wish.num), "--seed", str(wish.seed)]
    words += ["--num-steps", str(wish.steps)]
    kind, _, decay = wish.weights.partition(" ")
    words += ["--weights", kind] if kind != "ema" else []
    words += ["--ema-decay", decay] if decay and "=" not in decay else []  # else the only one
    words += ["--class-label", wish.class_name] if wish.class_name is not None else []
    words += [part for name, word in wish.cond.items() for part in ("--cond", f"{name}={word}")]
    words += ["--guidance-scale", f"{wish.guidance:g}"] if wish.guidance != 1 else []
    words += ["--checkpoint", checkpoint] if checkpoint != "latest" else []
    return shlex.join(words)


def make_page(
    artist: Artist, run: str, checkpoint: str = "latest", cond: Mapping[str, str] | None = None
) -> Any:
    """Build the page.

    Args:
        artist: Draws.
        run: As the user gave it, for the title and the command.
        checkpoint: As the user gave it.
        cond: Conditions to begin with, by name as `--cond` says them.

    Returns:
        A `gradio.Blocks`.
    """
    gr = load_gradio()

    def others(seed: float) -> float:
        return int(seed) + 1

    names = artist.class_names
    with gr.Blocks(title=f"ddpm demo: {run}", analytics_enabled=False) as page:
        gr.Markdown(f"### {_plain(run)}, {_plain(artist.name)}")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                weights = gr.Dropdown(
                    artist.weights,
                    value=artist.weights[0],
                    label="weights",
                    visible=len(artist.weights) > 1,
                )
                name = gr.Dropdown(
                    [IN_TURN, *names], value=IN_TURN, label="class", visible=bool(names)
                )
                num = gr.Slider(1, MOST, value=min(16, MOST), step=1, label="pictures")
                seed = gr.Number(0, precision=0, minimum=0, label="seed")
                most = artist.timesteps
                steps = gr.Slider(1, most, value=artist.usual_steps, step=1, label="steps")
                guidance = gr.Slider(
                    1, 10, value=1, step=0.1, label="guidance", visible=artist.guidable
                )
                if artist.conditions:
                    gr.Markdown("**conditions**")
                controls = make_controls(gr, artist.conditions, cond or {}, artist.texts)
                button = gr.Button("Draw", variant="primary")
                more = gr.Button("Others (next seed)")
            with gr.Column(scale=3):
                pictures = gr.Gallery(
                    label="pictures", columns=4, height=640, object_fit="contain", format="png"
                )
                told = gr.Markdown()
        draw = _drawing(gr, artist, run, checkpoint, controls)
        asked = [weights, name, num, seed, steps, guidance]
        asked += [part for control in controls for part in control.parts]
        button.click(draw, asked, [pictures, told], api_name="draw")
        more.click(others, seed, seed, api_name=False).then(
            draw, asked, [pictures, told], api_name=False
        )
        page.load(draw, asked, [pictures, told], api_name=False)
    return page


def _drawing(
    gr: Any, artist: Artist, run: str, checkpoint: str, controls: list[Control]
) -> Callable[..., tuple[list[np.ndarray], str]]:
    """Return what the button does: from the values of the page to pictures and the command."""

    def draw(
        weights: str,
        name: str,
        num: float,
        seed: float,
        steps: float,
        guidance: float,
        *of_conditions: Any,
    ) -> tuple[list[np.ndarray], str]:
        said = words_of(controls, of_conditions)
        lacking = [one.name for one in controls if one.needed and one.name not in said]
        if lacking:
            return [], f"Give {', '.join(lacking)} first: this network always needs it."
        wish = Wish(
            cond=said,
            weights=weights,
            class_name=None if name == IN_TURN else name,
            num=int(num),
            seed=int(seed),
            steps=int(steps),
            guidance=float(guidance),
        )
        began = time.monotonic()
        try:
            pictures = artist.draw(wish)
        except (ConfigError, RuntimeError, ValueError) as error:
            raise gr.Error(str(error)) from error
        told = f"{len(pictures)} in {time.monotonic() - began:.1f} s; the same from the shell:"
        return list(pictures), f"{told}\n\n`{command_of(run, checkpoint, wish)}`"

    return draw


def _plain(text: str) -> str:
    """Keep Markdown from reading a name."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()<>#+-.!|" else c for c in text)


def start(page: Any, host: str, port: int | None) -> str:
    """Serve a page on this machine, without a tunnel to anywhere, and return its address.

    Args:
        page: What `make_page` made.
        host: Address to listen at; only 127.0.0.1 keeps others out.
        port: Port; None for the first free one from 7860 on.

    Raises:
        ConfigError: If the port is taken.
    """
    gr = load_gradio()
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        _, address, _ = page.queue(default_concurrency_limit=1).launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            enable_monitoring=False,
            theme=theme,
            css=TILES,
        )
    except OSError as error:
        raise ConfigError(f"No page at {host}: {error}. Choose another --port.") from error
    return str(address)
