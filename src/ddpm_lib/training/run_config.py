"""config.yaml of a run: all its settings, and what they mean when the file is read where it
lies.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.files import write_atomically
from ddpm_lib.runs.run_status import is_run
from ddpm_lib.training.resume import describe_model
from ddpm_lib.training.sources import asks_for_files

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.training.config import TrainingConfig


def absolute_source(data: str, asked: bool = False) -> str:
    """Return a path of data so that it means the same from every folder; other names ("shapes", the
    hub's) stay, and sets of torchvision are named as such ("torchvision:mnist").

    What exists here under a name is that: a folder `pictures` must not become the hub's dataset of
    that name elsewhere.

    Args:
        data: As it was written.
        asked: Whether an option says that a set of torchvision is meant.
    """
    from ddpm_lib.data.missing_paths import leads_into
    from ddpm_lib.data.torchvision_sets import PREFIX, set_named

    if data == "shapes" or data.startswith("toy:"):
        return data
    name = set_named(data, asked)
    if name is not None:
        return PREFIX + name
    path = os.path.expanduser(data)
    try:
        there = (
            os.path.lexists(path)
            or leads_into(path)
            or (glob.has_magic(path) and bool(glob.glob(path, recursive=True)))
        )
    except (OSError, ValueError):  # a name too long, or with a zero byte: no path
        return data
    return os.path.abspath(path) if there else data


def portable_options(config: TrainingConfig) -> dict[str, Any]:
    """Return the options of training as values for JSON and YAML, paths made absolute."""
    from ddpm_lib.data.condition_words import portable_words

    options = config.to_dict()
    for name in ("val_data", "init_from"):
        if isinstance(options[name], str):
            options[name] = absolute_source(options[name], asks_for_files(config))
    for name in ("data_root", "files"):
        if options[name] is not None:
            options[name] = os.path.abspath(os.path.expanduser(options[name]))
    options["add_data"] = [absolute_source(v, asks_for_files(config)) for v in options["add_data"]]
    for name in ("condition", "add_condition", "val_condition"):
        options[name] = [portable_words(words) for words in options[name]]
    return options


def write_run_config(
    run: Path,
    source: str,
    config: TrainingConfig,
    diffusion: GaussianDiffusion,
) -> None:
    """Write config.yaml: everything that `ddpm train --config` needs to repeat the run.

    Args:
        run: The run directory.
        source: Name of the data.
        config: The options of training.
        diffusion: The process.

    Raises:
        OSError: If the disk refuses.
    """
    import yaml

    process = dict(diffusion.config)
    size, channels = process.pop("image_size"), process.pop("channels")
    model = dict(describe_model(diffusion.model)["config"] or {})
    for name in ("channels", "dims", "conditions"):
        model.pop(name, None)
    options = portable_options(config)
    if options["resume"] != "never":
        options["resume"] = "auto"  # going back to a checkpoint is done once, not at every start
    values = {
        "data": source,
        "image_size": list(size) if isinstance(size, (list, tuple)) else [size],
        "channels": channels,
        "class_conditional": model.get("num_classes") is not None,
        **options,
        "output_dir": str(run),
        "model": model,
        "diffusion": process,
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_atomically(run / "config.yaml", text)


def started_data(run: Path, output_dir: object, data: str) -> str:
    """Find data that a run names by a relative path, as those of older versions do: as seen from
    here, else from where the run was started.

    That is told by the run directory's own name: a run at /home/me/runs/a whose settings call it
    runs/a was started in /home/me.

    Args:
        run: The run directory, where it lies now.
        output_dir: What its settings call it.
        data: What they call the data.

    Returns:
        An absolute path where there is something; else `data` as it is.
    """
    from ddpm_lib.data.missing_paths import leads_into

    here = absolute_source(data)
    if here != data or not isinstance(output_dir, str) or os.path.isabs(output_dir):
        return here
    parts, ends = Path(os.path.abspath(run)).parts, Path(os.path.normpath(output_dir)).parts
    if not ends or ends[0] == ".." or parts[-len(ends) :] != ends:
        return data
    there = Path(*parts[: -len(ends)]) / data
    try:
        found = os.path.lexists(there) or leads_into(str(there))
        return str(there) if found else data
    except (OSError, ValueError):  # a name too long, or with a zero byte: no path
        return data


def in_its_run(path: str | Path, values: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Let the config file of a run mean the run directory that it lies in, wherever that was moved
    or copied to.

    Args:
        path: The file.
        values: What it says.

    Returns:
        The values, with the data where they lie (`started_data`), and a line for the user where
        the file itself names another directory.
    """
    file = Path(path)
    if (
        file.name != "config.yaml"
        or not isinstance(values.get("output_dir"), str)
        or not is_run(file.parent)
    ):
        return values, None
    run, said = file.parent, str(values["output_dir"])
    for name in ("data", "val_data"):
        if isinstance(values.get(name), str):
            values = {**values, name: started_data(run, said, values[name])}
    if os.path.realpath(run) == os.path.realpath(said):
        return values, None
    line = (
        f"{path} lies in the run directory {run}, so that is meant, and not {said}. --output-dir"
        " begins another run."
    )
    return {**values, "output_dir": str(run)}, line
