"""`Unet` with the arguments, the call and the tensor names of denoising-diffusion-pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.interop.lucidrains_network import to_our_names, to_peer_names
from ddpm_lib.nn import LucidrainsUnet

_INSIDE = "network."


class PeerNetwork(nn.Module):
    """A `LucidrainsUnet` behind the names of the original; its state dict is that of the original.

    Args:
        network: Ours.
    """

    def __init__(self, network: LucidrainsUnet) -> None:
        super().__init__()
        self.network = network
        self.channels, self.out_dim = network.channels, network.out_channels
        self.self_condition = bool(network.config["self_condition"])
        self.random_or_learned_sinusoidal_cond = network.config["time_features"] != "sinusoidal"
        self.downsample_factor = network.downsample_factor

    def state_dict(  # type: ignore[override]  # of torch's overloads
        self, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the weights by the names of the original; arguments as torch has them."""
        prefix: str = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        result: dict[str, Any] = super().state_dict(*args, **kwargs)
        inside = prefix + _INSIDE
        own = {k.removeprefix(inside): result.pop(k) for k in list(result) if k.startswith(inside)}
        result.update({prefix + name: tensor for name, tensor in to_peer_names(own).items()})
        return result

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        theirs = {
            k.removeprefix(prefix): state_dict.pop(k)
            for k in list(state_dict)
            if k.startswith(prefix)
        }
        ours = to_our_names(theirs)
        state_dict.update({prefix + _INSIDE + name: tensor for name, tensor in ours.items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Unet(PeerNetwork):
    """The network of denoising-diffusion-pytorch 2.x, made of our `LucidrainsUnet`.

    Args:
        dim: Base number of channels.
        init_dim: Width of the first level; None for dim.
        out_dim: Channels of the output; None for those of the images, twice as many with
            learned_variance.
        dim_mults: Width below each level as a multiple of dim.
        channels: Channels of the images.
        self_condition: Whether the network sees its own last estimate.
        learned_variance: Whether the output also says the variance.
        learned_sinusoidal_cond: Whether the frequencies of the time are learned.
        random_fourier_features: Whether they are random and fixed.
        learned_sinusoidal_dim: How many sines and cosines those make.
        sinusoidal_pos_emb_theta: Base of the fixed frequencies.
        dropout: Dropout probability.
        attn_dim_head: Features per attention head, for all levels or each.
        attn_heads: Attention heads, for all levels or each.
        full_attn: Whether attention is full, for all levels or each; None for the deepest only.
        flash_attn: Either way torch chooses the kernel, and takes flash attention where it can.

    Raises:
        ValueError: If the arguments do not fit each other.

    >>> Unet(dim=8, dim_mults=(1, 2)).out_dim
    3
    """

    @answers_wrong_keywords
    def __init__(
        self,
        dim: int,
        init_dim: int | None = None,
        out_dim: int | None = None,
        dim_mults: tuple[int, ...] = (1, 2, 4, 8),
        channels: int = 3,
        self_condition: bool = False,
        learned_variance: bool = False,
        learned_sinusoidal_cond: bool = False,
        random_fourier_features: bool = False,
        learned_sinusoidal_dim: int = 16,
        sinusoidal_pos_emb_theta: float = 10000,
        dropout: float = 0.0,
        attn_dim_head: int | tuple[int, ...] = 32,
        attn_heads: int | tuple[int, ...] = 4,
        full_attn: bool | tuple[bool, ...] | None = None,
        flash_attn: bool = False,
    ) -> None:
        levels = len(dim_mults)
        network = LucidrainsUnet(
            dim,
            tuple(dim_mults),
            channels,
            out_dim if out_dim is not None else channels * (2 if learned_variance else 1),
            init_dim=init_dim,
            attention_levels=_full_levels(full_attn, levels),
            heads=attn_heads,  # type: ignore[arg-type]  # one number counts for all levels
            head_dim=attn_dim_head,  # type: ignore[arg-type]
            dropout=dropout,
            time_features=time_features(learned_sinusoidal_cond, random_fourier_features),
            fourier_dim=learned_sinusoidal_dim,
            time_base=sinusoidal_pos_emb_theta,
            self_condition=self_condition,
        )
        super().__init__(network)

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: Noisy images (b, channels, h, w) in [-1, 1] units.
            time: Times (b,), counted from 0.
            x_self_cond: The last estimate of the images, like x.
        """
        cond: Mapping[str, Tensor] = {} if x_self_cond is None else {"self_cond": x_self_cond}
        return self.network(x, time, cond)


def _full_levels(full_attn: bool | tuple[bool, ...] | None, levels: int) -> tuple[int, ...] | None:
    """Return the levels with full attention."""
    if not full_attn:
        return None  # False too means the deepest level there
    flags = tuple(full_attn) if isinstance(full_attn, tuple | list) else (full_attn,) * levels
    if len(flags) != levels:
        raise ValueError(
            f"full_attn needs one entry for each of the {levels} levels of dim_mults, got {flags}."
        )
    return tuple(level for level, full in enumerate(flags) if full)


def time_features(learned: bool, random: bool) -> Any:
    """Return what the network sees of t; random frequencies win, as there.

    Args:
        learned: Its learned_sinusoidal_cond.
        random: Its random_fourier_features.
    """
    return "random" if random else "learned" if learned else "sinusoidal"


class OwnNetwork(nn.Module):
    """A network of the user's own, called as network(x, time, x_self_cond), as ours are called.

    Args:
        inner: It; its `channels`, `out_dim` and `self_condition` are read.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        from ddpm_lib.nn import SelfCondition

        self.inner = inner
        self.channels = int(inner.channels)  # type: ignore[arg-type]
        self.out_channels = int(getattr(inner, "out_dim", self.channels))
        shown = [SelfCondition(self.channels)] if getattr(inner, "self_condition", False) else []
        self.conditioners = nn.ModuleDict({conditioner.name: conditioner for conditioner in shown})

    def forward(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor | None] | None = None
    ) -> Tensor:
        """Run the network at whole times."""
        return self.inner(x, t.long(), (cond or {}).get("self_cond"))


def ours_of(model: nn.Module) -> nn.Module:
    """Return the network that our process calls, with the same weights.

    Args:
        model: A `PeerNetwork`, a network of ours, or one of the user's own.

    Raises:
        TypeError: If it is none of them.
    """
    if isinstance(model, PeerNetwork):
        return model.network
    if hasattr(model, "conditioners"):
        return model
    if not isinstance(model, nn.Module) or not hasattr(model, "channels"):
        raise TypeError(
            "model must be a Unet, or a network of your own with .channels that is called as"
            f" model(x, time, x_self_cond); got {type(model).__name__}."
        )
    return OwnNetwork(model)
