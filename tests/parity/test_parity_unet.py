"""The same numbers as published U-Nets, from their own weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ddpm_lib.interop.renaming import NAMINGS, rename_unet
from ddpm_lib.nn import Unet
from ddpm_lib.nn.embeddings import sinusoids
from published_networks import PublishedNetwork

HO = {"time_conditioning": "add", "heads": 1, "blocks_per_level": 1}
TQCH = HO | {
    "dim": 32,
    "dim_mults": (1, 2),
    "groups": 32,
    "norm_eps": 1e-6,
    "time_order": "sin_cos",
    "freq_shift": 1,
    "down_padding": "asymmetric",
}
OPENAI = {"dim": 32, "groups": 32, "blocks_per_level": 1}
DIFFUSERS = {"dim": 8, "groups": 4, "blocks_per_level": 1}
CASES = {
    "improved_diffusion_additive": OPENAI | HO | {"dim_mults": (1, 2), "attention_levels": (1,)},
    "improved_diffusion_fractional_t_heads": (
        OPENAI
        | {
            "channels": 1,
            "out_channels": 2,
            "dim_mults": (1,),
            "attention_levels": (0,),
            "heads": 2,
        }
        | {"gradient_checkpointing": True}
    ),
    "improved_diffusion_scale_shift_class_sigma": (
        OPENAI
        | {"out_channels": 6, "dim_mults": (1, 1), "attention_levels": (0, 1), "num_classes": 5}
        | {"heads": 4, "heads_up": 2}
    ),
    "improved_diffusion_superres": (
        OPENAI
        | {
            "dim_mults": (1, 1),
            "attention_levels": (1,),
            "heads": 2,
            "low_res_factor": 2,
            "low_res_max_noise": 0.0,
        }
    ),
    "guided_diffusion_pool_legacyattn": (
        OPENAI | {"dim_mults": (1, 1), "attention_levels": (0,), "heads": 4, "resample": "pool"}
    ),
    "guided_diffusion_updown_newattn": (
        OPENAI
        | {
            "out_channels": 6,
            "dim_mults": (1, 1),
            "attention_levels": (1,),
            "head_dim": 16,
            "num_classes": 3,
        }
        | {"resample": "resblock"}
    ),
    "tqch_conv_resample": TQCH | {"attention_levels": (1,), "dropout": 0.1},
    "tqch_no_conv_resample": (
        TQCH | {"attention_levels": (0,), "out_channels": 6, "time_dim": 48, "resample": "pool"}
    ),
    "pytorch_ddpm": (
        HO
        | {"dim": 32, "dim_mults": (2, 1), "attention_levels": (1,), "groups": 32, "dropout": 0.1}
        | {"time_order": "interleaved"}
    ),
    "diffusers_ddpm_hub_style": (
        DIFFUSERS
        | HO
        | {
            "dim_mults": (1, 2, 2),
            "attention_levels": (1,),
            "norm_eps": 1e-6,
            "time_order": "sin_cos",
            "freq_shift": 1,
        }
        | {"down_padding": "asymmetric"}
    ),
    "diffusers_default_style": (
        DIFFUSERS
        | {
            "dim_mults": (1, 2),
            "attention_levels": (1,),
            "head_dim": 4,
            "time_conditioning": "add",
        }
    ),
    "diffusers_scale_shift_class_resnet": (
        DIFFUSERS
        | {
            "out_channels": 6,
            "dim_mults": (1, 2),
            "attention_levels": (1,),
            "head_dim": 8,
            "num_classes": 4,
        }
        | {"resample": "resblock", "mid_attention": "no_norm"}
    ),
}
# Legacy guided-diffusion orders the channels of attention as improved-diffusion does.
PEER = {"guided_diffusion_pool_legacyattn": "improved-diffusion"}
PEERS = {
    "improved_diffusion": "improved-diffusion",
    "guided_diffusion": "guided-diffusion",
    "tqch": "ddpm-torch",
    "pytorch_ddpm": "pytorch-ddpm",
    "diffusers": "diffusers",
}


class Table(torch.nn.Module):
    """pytorch-ddpm keeps its sinusoids as a float32 table in the checkpoint."""

    def __init__(self, table, embedding) -> None:
        super().__init__()
        self.table, self.embedding = table, embedding

    def forward(self, t):
        rows = self.table[t.long()].to(self.embedding.linear1.weight.dtype)
        return self.embedding.linear2(F.silu(self.embedding.linear1(rows)))


def restore(shared, name: str):
    fixture = PublishedNetwork(shared / "fixtures" / "D_unets", name)
    peer = PEER.get(name) or next(naming for p, naming in PEERS.items() if name.startswith(p))
    model = Unet(**CASES[name]).eval()
    table = fixture.state.pop("time_embedding.timembedding.0.weight", None)
    renamed = rename_unet(model, fixture.state, NAMINGS[peer])
    model.load_state_dict(renamed.weights, strict=True)
    if table is not None:
        # Frequencies rounded to float32 times t ≤ 99: an absolute error of some 1e-5.
        ours = sinusoids(torch.arange(len(table)).double(), table.shape[1], "interleaved")
        torch.testing.assert_close(ours, table, rtol=0, atol=2e-5)
        model.time_embedding = Table(table, model.time_embedding)
    cond = {
        ours: fixture.tensors[theirs]
        for theirs, ours in (("in/y", "class_label"), ("in/low_res", "low_res"))
        if theirs in fixture.tensors
    }
    return fixture, model, renamed.same, cond


@pytest.mark.filterwarnings("ignore:With groups=32")
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_equal_the_published_network(shared, name):
    fixture, model, same, cond = restore(shared, name)
    inputs = fixture.tensors

    model.double()
    double = {k: v.double() if v.is_floating_point() else v for k, v in cond.items()}
    x = inputs["in/x"].double().requires_grad_()
    out = model(x, inputs["in/t"], double)
    torch.testing.assert_close(out, inputs["out_f64"], rtol=1e-9, atol=1e-10)
    (out * inputs["probe"]).sum().backward()
    torch.testing.assert_close(x.grad, inputs["grad_x_f64"], rtol=1e-8, atol=1e-10)

    norms = dict(
        zip(fixture.values["param_names"], inputs["param_grad_norm_f64"].tolist(), strict=True)
    )
    parameters = {
        k.replace("time_embedding.embedding.", "time_embedding."): p
        for k, p in model.named_parameters()
    }
    assert len(same) > 40
    for theirs, ours in same.items():
        # Insensitive parameters have gradients of rounding size only.
        assert parameters[ours].grad.norm().item() == pytest.approx(
            norms[theirs], rel=1e-7, abs=1e-9
        ), theirs

    model.float()
    out = model(inputs["in/x"], inputs["in/t"], cond)
    torch.testing.assert_close(out, inputs["out_f32"], rtol=1e-4, atol=2e-5)
