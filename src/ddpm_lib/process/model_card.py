"""Model cards: what the card of any model of this library says, and the card of one that has no run
directory.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_lib.core.hub.folder_config import LIBRARY
from ddpm_lib.core.hub.markdown import block, code, plain, table
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.process.conditions import class_count
from ddpm_lib.process.interface import TrainableProcess
from ddpm_lib.process.sampling_default import SamplingDefault

Rows = list[tuple[str, str]]
COLOURS = {1: "grey", 3: "RGB", 4: "RGBA"}
UNCONDITIONAL = "unconditional-image-generation"


def task_of(process: TrainableProcess) -> tuple[str | None, list[str]]:
    """Return the hub's name for what a process does, None where it has none, and further tags."""
    known, tags = set(process.conditioners or ()), ["diffusion", "ddpm"]
    if len(spatial(process)) != 2:
        return None, tags
    if "low_res" in known:
        return "image-to-image", [*tags, "super-resolution"]
    classes = ["class-conditional-image-generation"] if "class_label" in known else []
    return UNCONDITIONAL, [*tags, *classes]


def metadata(process: TrainableProcess, license: str | None, **more: Any) -> Any:
    """Return the metadata of a card, as huggingface_hub has them.

    Args:
        process: The process.
        license: The hub's name of a licence, None for none.
        **more: Further arguments of `huggingface_hub.ModelCardData`.
    """
    from huggingface_hub import ModelCardData

    task, tags = task_of(process)
    return ModelCardData(
        library_name=LIBRARY, pipeline_tag=task, tags=tags, license=license, **more
    )


def card_text(data: Any, parts: Sequence[str]) -> str:
    """Put metadata and paragraphs together."""
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def size_word(process: TrainableProcess) -> str:
    """Word the size of the images: "64×64 RGB"."""
    size = "×".join(map(str, spatial(process)))
    channels = f"{process.channels}-channel"
    if len(spatial(process)) != 2:
        return f"{size}, {channels}"
    return f"{size} {COLOURS.get(process.channels, channels)}"


def products(process: TrainableProcess) -> str:
    """Word what it makes: "64×64 RGB images", "2-channel signals of size 128"."""
    size = "×".join(map(str, spatial(process)))
    if len(spatial(process)) != 2:
        return f"{process.channels}-channel {noun(process)} of size {size}"
    return f"{size_word(process)} images"


def noun(process: TrainableProcess) -> str:
    """Say what it makes: images, signals or volumes."""
    return {1: "signals", 2: "images"}.get(len(spatial(process)), "volumes")


def summary(process: TrainableProcess, source: str = "") -> str:
    """Return the first sentence of a card.

    Args:
        process: The process.
        source: What it was trained on, as Markdown; "" where that is not known.
    """
    known = set(process.conditioners or ())
    what = f"draws {products(process)}"
    if "low_res" in known:
        what = f"enlarges images to {size_word(process)}"
    by_class = " by class" if "class_label" in known else ""
    named = list(data_conditions(process.conditioners))
    if named:
        by_class += f"{' and' if by_class else ''} by {', '.join(map(code, named))}"
    trained = f", trained on {source}" if source else ""
    return f"A denoising diffusion model (DDPM) that {what}{by_class}{trained}."


def usage(process: TrainableProcess, repo_id: str, revision: str | None = None) -> str:
    """Return how to load it and draw images."""
    at = f", revision={_quoted(revision)}" if revision is not None else ""
    known, names = set(process.conditioners or ()), process.class_names
    shape = ", ".join(map(str, (16, *process.image_shape)))
    imports, cond, before = ["from ddpm_lib import GaussianDiffusion"], "", list[str]()
    if "low_res" in known:
        imports.insert(0, "import torch")
        small = [side // _factor(process) for side in spatial(process)]
        sides = ", ".join(map(str, (16, process.channels, *small)))
        before = [f"small = torch.rand({sides})  # your small images, in [0, 1]"]
        cond = "small"
    elif "class_label" in known:
        cond = _quoted(names[0]) if names else "0"
    shown = {k: c.example for k, c in data_conditions(process.conditioners).items()}
    told = {k: json.dumps(v, ensure_ascii=False) for k, v in shown.items() if v is not None}
    name = "low_res" if "low_res" in known else "class_label"
    pairs = [f'"{name}": {cond}'] if cond else []
    pairs += [f'"{key}": {value}' for key, value in told.items()]
    lines = [
        *imports,
        "",
        f"diffusion = GaussianDiffusion.from_pretrained({_quoted(repo_id)}{at})",
        *before,
        "images = diffusion.sample(",
        "    16, seed=0" + ("," if pairs else ""),
        *([f"    cond={{{', '.join(pairs)}}},"] if pairs else []),
        f")  # float32 ({shape}) in [0, 1]",
    ]
    units = process.normalization
    if units is not None:
        unit = units.unit or "units of the data"
        lines.append(f"values = diffusion.normalization.inverse(images)  # {units.dtype}, {unit}")
    shell = ["pip install ddpm-lib"]
    network = type(process.model)
    if network.__module__.split(".")[0] not in ("ddpm_lib", "diffusers"):
        lines.insert(0, f"# Import first the module that registers {network.__name__}.")
    elif revision is None and (units is not None or len(spatial(process)) == 2):
        more = "--low-res path/to/small" if "low_res" in known else "--num 16"
        more += "" if units is None else " --format npy"
        words = [f"--cond {k}={shlex.quote(str(shown[k]))}" for k in told]
        shell.append(" ".join([f"ddpm sample {repo_id} {more}", *words]))
    return "\n\n".join(["## Use", block("bash", shell), "Or in Python:", block("python", lines)])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def spatial(process: TrainableProcess) -> tuple[int, ...]:
    """Return the size of the images without their channels."""
    return process.image_shape[1:]


def _factor(process: TrainableProcess) -> int:
    known: Mapping[str, Any] = process.conditioners or {}
    return int(known["low_res"].factor)


def outline(process: TrainableProcess) -> Rows:
    """Return what the network and the process are, as rows of a table."""
    config, model = process.config, process.model
    parameters = sum(p.numel() for p in model.parameters())
    rows = [
        ("Network", f"{code(type(model).__name__)}, {parameters:,} parameters"),
        (noun(process).capitalize(), size_word(process)),
    ]
    if "class_label" in set(process.conditioners or ()):
        rows.append(("Classes", classes_word(process)))
    for name, condition in data_conditions(process.conditioners).items():
        rows.append((f"Condition {code(name)}", plain(condition.words)))
    learned = ", with learned uncertainty" if config["learn_uncertainty"] else ""
    default = process.sampling_default
    chosen = [] if default is None else [("Sampling unless told otherwise", drawn_as(default))]
    return [
        *rows,
        ("Noise levels", f"{config['timesteps']:,}, {code(config['schedule'])} schedule"),
        ("Predicts", code(config["parametrization"])),
        ("Loss", f"{code(config['loss'])}, weighting {code(config['weighting'])}{learned}"),
        ("Variance of the reverse process", code(config["variance"])),
        *chosen,
    ]


def drawn_as(default: SamplingDefault) -> str:
    """Word a sampling default for a table: what it is, and what chose it."""
    calls = "" if default.calls is None else f", {default.calls:,} network calls per image"
    return f"{plain(default.words())}{calls} ({plain(default.origin())})"


def classes_word(process: TrainableProcess) -> str:
    """Word the classes: how many, and the first of their names."""
    names = process.class_names
    if not names:
        return f"{class_count(process.conditioners)}"
    shown = ", ".join(plain(name) for name in names[:12])
    return f"{len(names)}: {shown}{', …' if len(names) > 12 else ''}"


def license_section(license: str | None) -> str:
    """Say what the licence is, or that there is none."""
    if license is None:
        return (
            "## Licence\n\nNo licence was stated. Without one, others may look at the model and"
            " not much more; its owner can add `license:` to the head of this file."
        )
    return f"## Licence\n\n{code(license)}, for the weights. The training images have their own."


def simple_card(
    process: TrainableProcess, repo_id: str, license: str | None, revision: str | None = None
) -> str:
    """Return the card of a process whose training left no records here.

    Args:
        process: The process.
        repo_id: The repository that the card is for.
        license: The hub's name of a licence, None for none.
        revision: The branch that the card is for.
    """
    parts = [
        f"# {plain(repo_id.rsplit('/', 1)[-1])}",
        summary(process),
        usage(process, repo_id, revision),
        "## Model\n\n" + table(("Property", "Value"), outline(process)),
        "## Training and scores\n\nNot recorded: the model was uploaded from Python, without a run"
        " directory. `ddpm push RUN` writes how a run was trained, its scores and its limits.",
        license_section(license),
    ]
    return card_text(metadata(process, license), parts)
