"""Whether the hub can be reached from here."""

from __future__ import annotations

from collections.abc import Iterator

from ddpm_lib.core.health import Check
from ddpm_lib.core.hub.reach import can_reach


def check_hub() -> Iterator[Check]:
    """Say whether the hub answers, and where its cache is."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        says = "HF_HUB_OFFLINE is set: names of models and data are looked for in the cache only"
        yield Check("hub", "ok", says, "unset HF_HUB_OFFLINE to ask it")
    elif can_reach(constants.ENDPOINT):
        yield Check("hub", "ok", f"{constants.ENDPOINT} can be reached")
    else:
        says = f"{constants.ENDPOINT} cannot be reached"
        remedy = "set HF_HUB_OFFLINE=1 so that nothing waits for it; or check the proxy"
        yield Check("hub", "note", says, remedy)
    yield Check("hub cache", "ok", str(constants.HF_HUB_CACHE))
