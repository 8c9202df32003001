"""Random weights in the format of the published Inception network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def write_inception(path: Path) -> Path:
    """Write random weights under the names of the published file; the scale keeps images apart down
    to the logits.
    """
    import torch_fidelity.feature_extractor_inceptionv3 as peer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(peer, "load_state_dict_from_url", lambda *_, **__: {})
        network = peer.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            value.normal_(std=(2.0 / value[0].numel()) ** 0.5, generator=generator)
        elif name == "fc.weight":
            value.normal_(std=0.3, generator=generator)
        elif name.endswith("bn.bias"):
            value.normal_(std=0.1, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path
