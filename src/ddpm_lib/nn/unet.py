"""The network: a U-Net of the DDPM, IDDPM and ADM family for sequences, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ddpm_lib.core.binding import class_function
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.options import takes_plain
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.nn import _checks as checks
from ddpm_lib.nn.blocks import (
    BlockSettings,
    Direction,
    DownPadding,
    Head,
    Layer,
    Middle,
    Resample,
    Resampler,
    ResolutionLevel,
    TimeConditioning,
    zeroed,
)
from ddpm_lib.nn.condition_table import check_conditions, data_conditioners
from ddpm_lib.nn.conditioning import Augmentation, ClassLabel, Conditioner, SelfCondition
from ddpm_lib.nn.embeddings import TimeEmbedding, TimeOrder
from ddpm_lib.nn.low_res import low_res_conditioners
from ddpm_lib.nn.patches import from_patches, to_patches
from ddpm_lib.nn.presets import PRESETS
from ddpm_lib.nn.pretrained import from_pretrained, save_pretrained
from ddpm_lib.nn.registration import register_network
from ddpm_lib.nn.unet_arguments import MidAttention, check_arguments

if TYPE_CHECKING:
    from ddpm_lib.nn.summary import Summary


@register_network
class Unet(nn.Module):
    """Predict from a noisy sample x (b, channels, *spatial) and times t (b,) a tensor (b,
    out_channels, *spatial).

    Residual blocks with group normalisation at resolutions halved from level to level,
    self-attention at some of them, and skip connections from the way down to the way up (Ho et al.
    2020, appendix B; Nichol & Dhariwal 2021; Dhariwal & Nichol 2021). What the output means is not
    the network's business. At initialisation it is exactly 0.

    Args:
        dim: Base number of channels, even; level i has dim * dim_mults[i].
        dim_mults: Width of each level as a multiple of dim; the resolution halves from each level
            to the next.
        channels: Channels of the input: 1 for grey, 3 for RGB images.
        out_channels: Channels of the output; None for as many as the input. Learned variances need
            twice as many.
        patch_size: Side of the patches of pixels that the network works on; 2 makes it about four
            times cheaper, at some loss of fine detail (Hoogeboom et al. 2023, section 2.3).
        blocks_per_level: Residual blocks per level on the way down; one more on the way up.
        attention_levels: Levels with self-attention, 0 being the full resolution; None for the two
            deepest.
        heads: Attention heads.
        head_dim: Channels per attention head; replaces heads when given.
        heads_up: Attention heads on the way up; None for the same as heads.
        mid_attention: Attention at the lowest resolution: "norm" with normalisation in front,
            "no_norm", or "none".
        dropout: Dropout probability in the residual blocks, in [0, 1).
        time_conditioning: How time and conditions enter a block: "scale_shift" the normalisation,
            or "add".
        resample: Change of resolution: "conv", "pool" (average and repeat), or "resblock" (as ADM).
        down_padding: Padding of stride-2 convolutions: "symmetric", or "asymmetric" (as
            TensorFlow's SAME).
        groups: Groups of GroupNorm; None for the largest number up to 32 that leaves two channels
            in a group.
        norm_eps: Epsilon of GroupNorm.
        scale_skips: Multiply skip connections by 1/√2.
        time_dim: Length of the vector made from time and conditions; None for 4 * dim.
        time_order: Order of the sinusoids of the time embedding.
        freq_shift: 0 or 1; 1 makes the lowest frequency of the time embedding exactly 1/10000.
        time_scale: Factor on t before the time embedding.
        num_classes: Number of classes for a condition "class_label"; None for none.
        class_drop_prob: Probability of hiding the class label in training, for classifier-free
            guidance.
        self_condition: Let the network see its own last estimate of the image (Chen et al. 2023),
            for a forward pass more for half of the training images.
        augment_dim: Numbers that say how an image was augmented, 9 for the training option
            `augment`; None for none.
        low_res_factor: For super-resolution, how many times smaller the image of the condition
            "low_res" is, which training makes of its images (docs/super_resolution.md); None for no
            such condition.
        low_res_max_noise: Largest level, in [0, 1], of the noise that training puts on the small
            image; 0 for none.
        low_res_drop_prob: Probability of hiding the small image in training, for guidance by it.
        conditions: Those that come with the data, by name, such as {"age": {"kind": "number"}}
            (docs/conditions.md); None for none.
        dims: 1 for sequences, 2 for images, 3 for volumes.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, 10 to
            25 % more time.

    Raises:
        ValueError: If the arguments do not fit each other.

    >>> model = Unet(dim=8, dim_mults=(1, 2))
    >>> model(torch.randn(2, 3, 16, 16), torch.tensor([0, 999])).shape
    torch.Size([2, 3, 16, 16])
    """

    config: dict[str, Any]
    """All constructor arguments, JSON-able: `Unet(**model.config)` makes the same network."""

    @takes_plain
    @answers_wrong_keywords
    def __init__(
        self,
        dim: int = 64,
        dim_mults: tuple[int, ...] = (1, 2, 2, 2),
        channels: int = 3,
        out_channels: int | None = None,
        *,
        patch_size: int = 1,
        blocks_per_level: int = 2,
        attention_levels: tuple[int, ...] | None = None,
        heads: int = 4,
        head_dim: int | None = None,
        heads_up: int | None = None,
        mid_attention: MidAttention = "norm",
        dropout: float = 0.0,
        time_conditioning: TimeConditioning = "scale_shift",
        resample: Resample = "conv",
        down_padding: DownPadding = "symmetric",
        groups: int | None = None,
        norm_eps: float = 1e-5,
        scale_skips: bool = False,
        time_dim: int | None = None,
        time_order: TimeOrder = "cos_sin",
        freq_shift: int = 0,
        time_scale: float = 1.0,
        num_classes: int | None = None,
        class_drop_prob: float = 0.1,
        self_condition: bool = False,
        augment_dim: int | None = None,
        low_res_factor: int | None = None,
        low_res_max_noise: float = 0.5,
        low_res_drop_prob: float = 0.0,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
        dims: int = 2,
        gradient_checkpointing: bool = False,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        config["conditions"] = None if conditions is None else check_conditions(conditions)
        check_arguments(config)
        # Lists, not tuples: the config then equals itself after a round trip through JSON.
        self.config = {k: list(v) if isinstance(v, tuple | list) else v for k, v in config.items()}
        self.channels, self.dims = channels, dims
        self.out_channels = channels if out_channels is None else out_channels
        self.patch_size, pixels = patch_size, patch_size**dims
        self.downsample_factor = patch_size * 2 ** (len(dim_mults) - 1)
        self.skip_factor = math.sqrt(0.5) if scale_skips else 1.0
        self.gradient_checkpointing = gradient_checkpointing

        widths = [dim * mult for mult in dim_mults]
        settings = BlockSettings(
            dims=dims,
            emb_dim=4 * dim if time_dim is None else time_dim,
            groups=checks.resolve_groups(groups, [dim, *widths]),
            norm_eps=norm_eps,
            dropout=dropout,
            time_conditioning=time_conditioning,
        )
        checks.warn_if_time_is_lost(settings, widths)
        self.time_embedding = TimeEmbedding(
            dim, settings.emb_dim, time_order, freq_shift, time_scale
        )
        self.conditioners = nn.ModuleDict(
            {c.name: c for c in self.build_conditioners(settings.emb_dim)}
        )
        extra = sum(cast(Conditioner, c).extra_channels for c in self.conditioners.values())
        self.conv_in = settings.conv((channels + extra) * pixels, dim)
        self._build_paths(dim, widths, settings)
        self.norm_out = settings.norm(widths[0])
        self.conv_out = zeroed(settings.conv(widths[0], self.out_channels * pixels))
        self.head = Head()

    def build_conditioners(self, emb_dim: int) -> list[Conditioner]:
        """Return the conditioners; override this to condition on something else.

        Args:
            emb_dim: Length of the vectors that `Conditioner.embed` must return.
        """
        config, made = self.config, list[Conditioner]()
        if config["num_classes"] is not None:
            made.append(ClassLabel(config["num_classes"], emb_dim, config["class_drop_prob"]))
        if config["self_condition"]:
            made.append(SelfCondition(config["channels"]))
        if config["augment_dim"] is not None:
            made.append(Augmentation(config["augment_dim"], emb_dim))
        if config["low_res_factor"] is not None:
            low_res = (config[f"low_res_{name}"] for name in ("factor", "max_noise", "drop_prob"))
            made += low_res_conditioners(config["channels"], config["dims"], emb_dim, *low_res)
        return made + data_conditioners(config["conditions"], emb_dim, config["dims"])

    def _build_paths(self, dim: int, widths: Sequence[int], settings: BlockSettings) -> None:
        """Make the way down, the middle and the way up."""
        config = self.config
        attention = checks.resolve_attention_levels(config["attention_levels"], len(widths))
        heads_up = config["heads"] if config["heads_up"] is None else config["heads_up"]

        def heads(level: int, count: int, name: str) -> int | None:
            return (
                checks.resolve_heads(widths[level], count, config["head_dim"], name)
                if level in attention
                else None
            )

        def resampler(width: int, direction: Direction) -> Resampler:
            return Resampler(width, direction, config["resample"], config["down_padding"], settings)

        blocks, last = config["blocks_per_level"], len(widths) - 1
        skips, self.down, self.up = [dim], nn.ModuleList(), nn.ModuleList()
        width = dim
        for level, level_width in enumerate(widths):
            ins_and_outs = pairwise([width] + [level_width] * blocks)
            layers = [
                Layer(i, o, heads(level, config["heads"], "heads"), settings)
                for i, o in ins_and_outs
            ]
            self.down.append(
                ResolutionLevel(layers, resampler(level_width, "down") if level < last else None)
            )
            width = level_width
            skips += [width] * (blocks + (level < last))
        mid_heads = None
        if config["mid_attention"] != "none":
            mid_heads = checks.resolve_heads(width, config["heads"], config["head_dim"])
        self.middle = Middle(width, mid_heads, config["mid_attention"] == "norm", settings)
        for level, level_width in reversed(list(enumerate(widths))):
            layers = []
            for _ in range(blocks + 1):
                layers.append(
                    Layer(
                        width + skips.pop(),
                        level_width,
                        heads(level, heads_up, "heads_up"),
                        settings,
                    )
                )
                width = level_width
            self.up.append(ResolutionLevel(layers, resampler(width, "up") if level > 0 else None))

    def forward(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor | None] | None = None
    ) -> Tensor:
        """Run the network.

        Args:
            x: Input (b, channels, *spatial); every spatial size divisible by `downsample_factor`.
            t: Times (b,), integer or floating point.
            cond: Conditions by name; one that is missing or None counts as its null.

        Returns:
            Tensor of shape (b, out_channels, *spatial).
        """
        self._check_inputs(x, t)
        emb, x = self._condition(x, t, cond or {})
        h = self.conv_in(to_patches(x, self.patch_size))
        skips = [h]
        for level in self.down:
            for layer in cast(ResolutionLevel, level).layers:
                h = self._run(layer, h, emb)
                skips.append(h)
            if level.resample is not None:
                h = self._run(cast(nn.Module, level.resample), h, emb)
                skips.append(h)
        h = self._run(self.middle, h, emb)
        for level in self.up:
            for layer in cast(ResolutionLevel, level).layers:
                skip = skips.pop()
                scaled = skip * self.skip_factor if self.skip_factor != 1 else skip
                h = self._run(layer, h, emb, scaled)
            if level.resample is not None:
                h = self._run(cast(nn.Module, level.resample), h, emb)
        return from_patches(self.head(h, self.norm_out, self.conv_out), self.patch_size)

    def _condition(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Return the activated conditioning vector (b, emb_dim) and the input with its extra
        channels.
        """
        for name in cond:
            if name not in self.conditioners:
                if not self.conditioners:
                    raise ValueError(
                        f"This Unet has no conditions but got {name!r}; for labels set num_classes."
                    )
                raise ValueError(unknown_name("condition", name, self.conditioners))
        emb = self.time_embedding(t)
        inputs = [x]
        for name, module in self.conditioners.items():
            conditioner = cast(Conditioner, module)
            value = cond.get(name)
            if value is None:
                value = conditioner.null_for(x)
            else:
                conditioner.validate(value, x.shape[0])
            embedded, extra = conditioner.embed(value), conditioner.channels_of(value, x)
            if embedded is not None:
                emb = emb + embedded
            if extra is not None:
                inputs.append(extra)
        # Every block begins with this activation; once is enough.
        return F.silu(emb), torch.cat(inputs, dim=1) if len(inputs) > 1 else x

    def _run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """Run one part of the network, recomputed in the backward pass when so configured."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)

    def _check_inputs(self, x: Tensor, t: Tensor) -> None:
        """Raise when shapes do not fit; reads no values, so that no device is waited for."""
        if x.ndim != self.dims + 2:
            raise ValueError(
                f"x must have {self.dims + 2} dimensions (batch, channels and {self.dims} spatial),"
                f" got shape {tuple(x.shape)}."
            )
        if x.shape[1] != self.channels:
            raise ValueError(
                f"x must have {self.channels} channels in its second dimension, got shape"
                f" {tuple(x.shape)}. Make the network with channels={x.shape[1]} if that is what"
                " the data have."
            )
        if t.ndim != 1 or t.shape[0] != x.shape[0]:
            raise ValueError(
                f"t must have one time per sample, shape ({x.shape[0]},), got {tuple(t.shape)}."
            )
        checks.check_spatial(x.shape[2:], self.downsample_factor)

    def regions(self) -> list[nn.Module]:
        """Return the parts that training compiles one by one (each shape once)."""
        parts = [part for part in self.modules() if isinstance(part, Layer | Resampler | Middle)]
        return [*parts, self.time_embedding, self.conv_in, self.head]

    def check_size(self, image_size: int | Sequence[int]) -> None:
        """Raise ValueError when images of this size do not fit, naming the nearest sizes that do.

        Args:
            image_size: One size for all directions, or one per direction.
        """
        sizes = (image_size,) * self.dims if isinstance(image_size, int) else tuple(image_size)
        if len(sizes) != self.dims:
            raise ValueError(
                f"image_size must have {self.dims} entries, one per direction, got {sizes}."
            )
        checks.check_spatial(sizes, self.downsample_factor)
        for conditioner in self.conditioners.values():
            cast(Conditioner, conditioner).check_size(sizes)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Unet:
        """Make a named network: "tiny", "small", "cifar10", "imagenet64", or one of a published
        run (docs/unet.md).

        Args:
            name: Name of the preset.
            **overrides: Constructor arguments that replace the preset's.

        Raises:
            ValueError: If the preset or an argument is unknown; names the nearest one.
        """
        return cls(**preset_config(name, **overrides))

    save_pretrained = save_pretrained
    from_pretrained = class_function(from_pretrained)

    def summary(self, image_size: int | Sequence[int] = 32, batch_size: int = 1) -> Summary:
        """Count parameters, multiplications and training memory; see
        `ddpm_lib.nn.summary.summarize`.
        """
        from ddpm_lib.nn.summary import summarize

        return summarize(self, image_size, batch_size)


def preset_config(name: str, **overrides: Any) -> dict[str, Any]:
    """Return the constructor arguments of a preset, some of them replaced."""
    choices = [arg for arg in Unet.__init__.__annotations__ if arg != "return"]
    for argument in overrides:
        if argument not in choices:
            raise ValueError(unknown_name("argument of Unet", argument, choices))
    return {**PRESETS[name], **overrides}
