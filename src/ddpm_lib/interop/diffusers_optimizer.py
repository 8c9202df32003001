"""AdamW's moments in the checkpoints that diffusers' training scripts write through accelerate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ddpm_lib.interop.adam_state import adam_options, adam_step, adam_tensors, is_adam_state
from ddpm_lib.interop.diffusers_unet import in_order
from ddpm_lib.interop.imported import Opened, Weights


def read_optimizer(
    opened: Opened, rename: Callable[[Mapping[str, Tensor]], Weights], notes: list[str]
) -> tuple[Weights, int, dict[str, Any]]:
    """Bring the state of optimizer.bin under our names, by the order of the network's parameters.

    Args:
        opened: A folder with `unet/` and optimizer.bin.
        rename: Brings tensors of the network by their names under ours.
        notes: Gets a line where it cannot be carried over.

    Returns:
        `<parameter>|<entry>` for step, exp_avg and exp_avg_sq; the steps done; the settings as
        options of training. Empty where there is none.

    Raises:
        CheckpointError: If it is of another network.
    """
    saved = opened.content.get("optimizer")
    unet = next((v for k, v in opened.content.items() if k.startswith("unet/")), None)
    if saved is None or not isinstance(unet, Mapping):
        return {}, 0, {}
    if not is_adam_state(saved):
        notes.append("optimizer.bin is no state of AdamW and is not carried over.")
        return {}, 0, {}
    where = f"{opened.path}/optimizer.bin"
    tensors = adam_tensors(saved, in_order(list(unet)), lambda t, _: rename(t), where)
    return tensors, adam_step(saved), {**adam_options(saved), "optimizer": "adamw"}
