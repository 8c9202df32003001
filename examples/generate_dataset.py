"""Make a training set from a prompt, with any text-to-image pipeline of diffusers.

    pip install "diffusers>=0.42" transformers
    python examples/generate_dataset.py --model path/to/pipeline \
        --prompt "a watercolour of an owl" --count 2000 --size 64 --output path/to/owls
    ddpm audit path/to/owls --image-size 64
    ddpm train path/to/owls --image-size 64 --output-dir runs/owls

--model is a folder that a pipeline was saved in, or its name on the Hugging Face hub. Several
prompts make a folder each, which are classes for `ddpm train --class-conditional`. The same command
goes on where it was cut off: picture i is a function of model, prompt, seed and i, and what is
there stays. Weights in pickles are refused. The set is as good, as varied and as free to use as
what the pipeline draws: look at it, and read the licence of the model.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image, ImageOps

from ddpm_lib.cli import run_script
from ddpm_lib.core import keys
from ddpm_lib.core.files import sweep, write_aside, write_atomically
from ddpm_lib.core.progress import bar

RECORD = "generated.json"
"""What the pictures were made by, beside them."""
FREE = ("count", "output", "batch_size", "device", "dtype")
"""Options that another call for the same set may give another value."""


@dataclass(kw_only=True)
class Options:
    model: str
    """A folder with a saved pipeline, or a name on the Hugging Face hub."""
    prompt: list[str]
    """What to draw; several make a class each."""
    output: Path
    """The folder to fill."""
    count: int = 1000
    """Pictures per prompt."""
    size: int = 64
    """Their side in pixels: what is drawn is cut to a square and reduced."""
    seed: int = 0
    """Names all noise."""
    negative_prompt: str | None = None
    """What not to draw."""
    num_steps: int | None = None
    """Network calls per picture; default: the pipeline's."""
    guidance_scale: float | None = None
    """How closely to follow the prompt; default: the pipeline's."""
    draw_size: int | None = None
    """Side at which the pipeline draws; default: the pipeline's."""
    batch_size: int = 4
    """Pictures at a time."""
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    """Where to compute."""
    dtype: str = "auto"
    """float32, float16, bfloat16, or auto: float16 on CUDA, else float32."""


def check(options: Options) -> None:
    """Refuse what cannot be meant."""
    for name in ("count", "size", "batch_size"):
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least 1, got {getattr(options, name)}.")
    if options.dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ValueError(
            f"--dtype must be auto, float32, float16 or bfloat16, got {options.dtype!r}."
        )
    folders = [folder_of(prompt) for prompt in options.prompt]
    if len(set(folders)) < len(folders) or "" in folders:
        raise ValueError(
            f"Each --prompt needs letters or digits of its own, for the name of its folder;"
            f" these would be {folders}."
        )


def folder_of(prompt: str) -> str:
    """Return the name of a prompt's folder.

    >>> folder_of("A watercolour of an owl, 4k")
    'a-watercolour-of-an-owl-4k'
    """
    return "-".join(re.findall(r"\w+", prompt.lower()))[:80].rstrip("-")


def load(options: Options) -> Any:
    """Load the pipeline and check that it draws pictures from words."""
    if find_spec("diffusers") is None:
        raise ModuleNotFoundError(
            "examples/generate_dataset.py needs diffusers, and most pipelines transformers."
            " Install them: pip install 'diffusers>=0.42' transformers"
        )
    from diffusers import DiffusionPipeline

    chosen = options.dtype
    if chosen == "auto":
        chosen = "float16" if options.device.startswith("cuda") else "float32"
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            options.model, dtype=getattr(torch, chosen), use_safetensors=True
        )
    except (OSError, ImportError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"--model {options.model!r} could not be loaded as a pipeline with safetensors: {first}"
            " Give a folder that holds model_index.json, or a name on the hub; what a pipeline"
            " needs besides diffusers is mostly transformers (pip install transformers)."
        ) from error
    if "prompt" not in inspect.signature(type(pipeline).__call__).parameters:
        raise ValueError(
            f"--model {options.model!r} is a {type(pipeline).__name__}, which takes no prompt."
            " Give a text-to-image pipeline."
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(options.device)


def check_record(options: Options) -> dict[str, Any]:
    """Return what the set is made by; pictures of other options are not mixed into it."""
    wanted = {k: v for k, v in dataclasses.asdict(options).items() if k not in FREE}
    file = options.output / RECORD
    if file.exists():
        found = json.loads(file.read_text("utf-8"))
        other = [
            f"{name}: {found.get(name)!r} there, {value!r} now"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
        if other:
            raise ValueError(
                f"{options.output} holds pictures of other options ({'; '.join(other)}). Give the"
                " same ones to go on, or another --output."
            )
    elif options.output.exists() and any(options.output.iterdir()):
        raise ValueError(
            f"{options.output} holds other files, with which new pictures would be mixed. Give an"
            " empty --output."
        )
    return wanted


def fit(picture: Image.Image, size: int) -> Image.Image:
    """Cut a picture to a centred square and reduce it."""
    return ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS)


def still_missing(options: Options) -> list[tuple[str, Path, int]]:
    """Return prompt, file and number of each picture that is not there."""
    places = [
        (prompt, options.output / (folder_of(prompt) if len(options.prompt) > 1 else ""))
        for prompt in options.prompt
    ]
    return [
        (prompt, folder / f"{i:06d}.png", i)
        for prompt, folder in places
        for i in range(options.count)
        if not (folder / f"{i:06d}.png").exists()
    ]


def draw(pipeline: Any, options: Options, part: list[tuple[str, Path, int]]) -> int:
    """Draw some pictures and write them; return how many the pipeline itself held back."""
    given = inspect.signature(type(pipeline).__call__).parameters
    words: dict[str, Any] = {
        "negative_prompt": options.negative_prompt and [options.negative_prompt] * len(part),
        "num_inference_steps": options.num_steps,
        "guidance_scale": options.guidance_scale,
        "height": options.draw_size,
        "width": options.draw_size,
    }
    words = {name: value for name, value in words.items() if value is not None}
    unknown = sorted(words.keys() - given.keys())
    if unknown:
        raise ValueError(f"{type(pipeline).__name__} does not take {', '.join(unknown)}.")
    noise = [keys.generator("cpu", i, options.seed, "picture", prompt) for prompt, _, i in part]
    out = pipeline(prompt=[prompt for prompt, _, _ in part], generator=noise, **words)
    held_back = getattr(out, "nsfw_content_detected", None) or [False] * len(part)
    for picture, (_, file, _), refused in zip(out.images, part, held_back, strict=True):
        if not refused:  # which the pipeline has made black
            small = fit(picture, options.size)
            write_aside(file, partial(small.save, format="PNG"))
    return sum(map(bool, held_back))


def main(args: list[str] | None = None) -> int:
    options = tyro.cli(Options, args=args, description=__doc__)
    check(options)
    record = check_record(options)
    missing, total = still_missing(options), options.count * len(options.prompt)
    print(f"{total - len(missing)} of {total} pictures are there.")
    if missing:
        pipeline, refused = load(options), 0
        for folder in {file.parent for _, file, _ in missing}:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
        write_atomically(options.output / RECORD, json.dumps(record, indent=1) + "\n")
        starts = range(0, len(missing), options.batch_size)
        for first in bar(starts, desc="pictures", unit="batch"):
            refused += draw(pipeline, options, missing[first : first + options.batch_size])
        if refused:
            print(f"The pipeline's safety checker held {refused} back; they are left out.")
    print(f"Next: ddpm train {options.output} --image-size {options.size}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))  # wrong input ends in a line
