"""The network of denoising-diffusion-pytorch: RMS normalisation and linear attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddpm_lib.core.binding import class_function
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.options import takes_plain
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.nn import _checks as checks
from ddpm_lib.nn.conditioning import ClassLabel, Conditioner, SelfCondition
from ddpm_lib.nn.lucidrains_blocks import (
    BlockNorm,
    Downsampling,
    DownUnshuffle,
    FourierFeatures,
    LinearAttention,
    LucidrainsSettings,
    MemoryAttention,
    ResidualBlock,
    Sinusoids,
    TimeFeatures,
    TimeMLP,
    Up,
)
from ddpm_lib.nn.pretrained import from_pretrained, save_pretrained
from ddpm_lib.nn.registration import register_network
from ddpm_lib.nn.summary import Summary, summarize


class ClassVector(ClassLabel):
    """A class label as a learned vector behind a small network of its own.

    Args:
        num_classes: Number of classes.
        dim: Length of the learned vectors.
        emb_dim: Length of the vectors that come out.
        drop_prob: Probability of hiding a label in training.
    """

    def __init__(self, num_classes: int, dim: int, emb_dim: int, drop_prob: float) -> None:
        super().__init__(num_classes, dim, drop_prob)
        self.mlp = nn.Sequential(nn.Linear(dim, emb_dim), nn.GELU(), nn.Linear(emb_dim, emb_dim))

    def embed(self, value: Tensor) -> Tensor:
        """Return the vectors (b, emb_dim) of labels (b,)."""
        return self.mlp(super().embed(value))


@register_network
class LucidrainsUnet(nn.Module):
    """Predict from a noisy image x (b, channels, h, w) and times t (b,) a tensor (b, out_channels,
    h, w), with the network of lucidrains' denoising-diffusion-pytorch 2.x.

    It exists to hold, continue and share weights of that library, number for number; for a new
    training `Unet` is the network of the published results. Two residual blocks and an attention
    per level, linear in the number of pixels but for `attention_levels`; a 7×7 convolution in
    front; the tensors have the names that the original saves. The defaults are those of its `Unet`;
    its network with classes (`classifier_free_guidance`) has attention_levels=(), memory_tokens=0,
    downsampling="conv".

    Args:
        dim: Base number of channels, even; level i has dim * dim_mults[i − 1], the first
            `init_dim`.
        dim_mults: Width below each level as a multiple of dim; the resolution halves from each
            level to the next.
        channels: Channels of the input: 1 for grey, 3 for RGB images.
        out_channels: Channels of the output; None for as many as the input. Learned variances need
            twice as many.
        init_dim: Width of the first level; None for dim.
        attention_levels: Levels with full attention, 0 being the full resolution, the others having
            linear attention; None for the deepest.
        heads: Attention heads of each level; one number for all.
        head_dim: Features per head of each level; one number for all.
        mid_heads: Attention heads at the lowest resolution; None for those of the deepest level.
        mid_head_dim: Features per head there; None for those of the deepest level.
        memory_tokens: Learned keys and values that attention sees besides the pixels.
        downsampling: "unshuffle" or "conv".
        norm: Normalisation in the residual blocks: "rms" (2.x) or "group" (1.8 to 1.11).
        dropout: Dropout probability in the first half of the residual blocks, in [0, 1).
        time_features: What the network sees of t: "sinusoidal", or "learned" or "random"
            frequencies.
        fourier_dim: Number of sines and cosines of learned or random frequencies, even.
        time_base: The lowest frequency of the sinusoids is 1/time_base.
        num_classes: Number of classes for a condition "class_label"; None for none.
        class_drop_prob: Probability of hiding the class label in training, for classifier-free
            guidance.
        self_condition: Let the network see its own last estimate of the image (Chen et al. 2023).

    Raises:
        ValueError: If the arguments do not fit each other.

    >>> model = LucidrainsUnet(dim=8, dim_mults=(1, 2))
    >>> model(torch.randn(2, 3, 16, 16), torch.tensor([0, 999])).shape
    torch.Size([2, 3, 16, 16])
    """

    config: dict[str, Any]
    """All constructor arguments, JSON-able: `LucidrainsUnet(**model.config)` makes the same
    network.
    """

    dims = 2

    @takes_plain
    @answers_wrong_keywords
    def __init__(
        self,
        dim: int = 64,
        dim_mults: tuple[int, ...] = (1, 2, 4, 8),
        channels: int = 3,
        out_channels: int | None = None,
        *,
        init_dim: int | None = None,
        attention_levels: tuple[int, ...] | None = None,
        heads: tuple[int, ...] = (4,),
        head_dim: tuple[int, ...] = (32,),
        mid_heads: int | None = None,
        mid_head_dim: int | None = None,
        memory_tokens: int = 4,
        downsampling: Downsampling = "unshuffle",
        norm: BlockNorm = "rms",
        dropout: float = 0.0,
        time_features: TimeFeatures = "sinusoidal",
        fourier_dim: int = 16,
        time_base: float = 10_000.0,
        num_classes: int | None = None,
        class_drop_prob: float = 0.5,
        self_condition: bool = False,
    ) -> None:
        config = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        super().__init__()
        _check_arguments(config)
        # Lists, not tuples: the config then equals itself after a round trip through JSON.
        self.config = {k: list(v) if isinstance(v, tuple | list) else v for k, v in config.items()}
        self.channels = channels
        self.out_channels = channels if out_channels is None else out_channels
        self.downsample_factor = 2 ** (len(dim_mults) - 1)
        widths = [dim if init_dim is None else init_dim, *(dim * mult for mult in dim_mults)]

        self.conditioners = nn.ModuleDict({c.name: c for c in self.build_conditioners(4 * dim)})
        extra = sum(cast(Conditioner, c).extra_channels for c in self.conditioners.values())
        self.init_conv = nn.Conv2d(channels + extra, widths[0], 7, padding=3)
        if time_features == "sinusoidal":
            self.time_mlp = TimeMLP(Sinusoids(dim, time_base), dim, 4 * dim)
        else:
            features = FourierFeatures(fourier_dim, time_features == "learned")
            self.time_mlp = TimeMLP(features, fourier_dim + 1, 4 * dim)
        vectors = 1 if num_classes is None else 2
        settings = LucidrainsSettings(4 * dim * vectors, norm, dropout, memory_tokens)
        self._build_paths(widths, settings)
        self.final_res_block = settings.block(2 * widths[0], widths[0])
        self.final_conv = nn.Conv2d(widths[0], self.out_channels, 1)

    def build_conditioners(self, emb_dim: int) -> list[Conditioner]:
        """Return the conditioners.

        Args:
            emb_dim: Length of the vectors that `Conditioner.embed` must return.
        """
        config, made = self.config, list[Conditioner]()
        if config["num_classes"] is not None:
            number, drop_prob = config["num_classes"], config["class_drop_prob"]
            made.append(ClassVector(number, config["dim"], emb_dim, drop_prob))
        if config["self_condition"]:
            made.append(SelfCondition(config["channels"]))
        return made

    def _build_paths(self, widths: Sequence[int], settings: LucidrainsSettings) -> None:
        """Make the way down, the middle and the way up."""
        config, last = self.config, len(widths) - 2
        full = config["attention_levels"]
        full = [last] if full is None else full
        heads, head_dim = (_per_level(config[k], last + 1) for k in ("heads", "head_dim"))
        memory = settings.memory_tokens

        def attention(level: int, width: int) -> nn.Module:
            kind = MemoryAttention if level in full else LinearAttention
            return kind(width, heads[level], head_dim[level], memory)

        def block(width: int, out: int) -> ResidualBlock:
            return settings.block(width, out)

        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (width, below) in enumerate(pairwise(widths)):
            if level == last:
                down: nn.Module = nn.Conv2d(width, below, 3, padding=1)
            elif config["downsampling"] == "conv":
                down = nn.Conv2d(width, below, 4, stride=2, padding=1)
            else:
                down = DownUnshuffle(width, below)
            parts = block(width, width), block(width, width), attention(level, width), down
            self.downs.append(nn.ModuleList(parts))
        deepest = widths[-1]
        self.mid_block1 = block(deepest, deepest)
        self.mid_attn = MemoryAttention(
            deepest,
            heads[-1] if config["mid_heads"] is None else config["mid_heads"],
            head_dim[-1] if config["mid_head_dim"] is None else config["mid_head_dim"],
            memory,
        )
        self.mid_block2 = block(deepest, deepest)
        for level, (width, below) in reversed(list(enumerate(pairwise(widths)))):
            both = below + width
            up = Up(below, width) if level else nn.Conv2d(below, width, 3, padding=1)
            parts = block(both, below), block(both, below), attention(level, below), up
            self.ups.append(nn.ModuleList(parts))

    def forward(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor | None] | None = None
    ) -> Tensor:
        """Run the network.

        Args:
            x: Input (b, channels, h, w); h and w divisible by `downsample_factor`.
            t: Times (b,), integer or floating point.
            cond: Conditions by name; one that is missing or None counts as its null.

        Returns:
            Tensor of shape (b, out_channels, h, w).
        """
        self._check_inputs(x, t)
        emb, x = self._condition(x, t, cond or {})
        first = h = self.init_conv(x)
        skips = []
        for level in self.downs:
            block1, block2, attention, down = cast(nn.ModuleList, level)
            h = block1(h, emb)
            skips.append(h)
            h = attention(block2(h, emb))
            skips.append(h)
            h = down(h)
        h = self.mid_block2(self.mid_attn(self.mid_block1(h, emb)), emb)
        for level in self.ups:
            block1, block2, attention, up = cast(nn.ModuleList, level)
            h = block1(torch.cat((h, skips.pop()), dim=1), emb)
            h = block2(torch.cat((h, skips.pop()), dim=1), emb)
            h = up(attention(h))
        return self.final_conv(self.final_res_block(torch.cat((h, first), dim=1), emb))

    def _condition(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Return the vector of time and class, and the input behind its extra channels."""
        for name in cond:
            if name not in self.conditioners:
                if not self.conditioners:
                    raise ValueError(f"This network has no conditions but got {name!r}.")
                raise ValueError(unknown_name("condition", name, self.conditioners))
        vectors, inputs = [self.time_mlp(t)], [x]
        for name, module in self.conditioners.items():
            conditioner = cast(Conditioner, module)
            value = cond.get(name)
            if value is None:
                value = conditioner.null_for(x)
            else:
                conditioner.validate(value, x.shape[0])
            embedded, extra = conditioner.embed(value), conditioner.channels_of(value, x)
            vectors += [] if embedded is None else [embedded]
            inputs[:0] = [] if extra is None else [extra]
        return torch.cat(vectors, dim=1), torch.cat(inputs, dim=1)

    def _check_inputs(self, x: Tensor, t: Tensor) -> None:
        """Raise when shapes do not fit; reads no values, so that no device is waited for."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"x must have shape (batch, {self.channels}, height, width), got {tuple(x.shape)}."
            )
        if t.ndim != 1 or t.shape[0] != x.shape[0]:
            raise ValueError(
                f"t must have one time per sample, shape ({x.shape[0]},), got {tuple(t.shape)}."
            )
        checks.check_spatial(x.shape[2:], self.downsample_factor)

    def regions(self) -> list[nn.Module]:
        """Return the parts that repeat, which training compiles one by one (each shape once)."""
        kinds = ResidualBlock | LinearAttention | MemoryAttention
        return [part for part in self.modules() if isinstance(part, kinds)]

    def check_size(self, image_size: int | Sequence[int]) -> None:
        """Raise ValueError when images of this size do not fit, naming the nearest sizes that do.

        Args:
            image_size: One size for both directions, or one per direction.
        """
        sizes = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
        if len(sizes) != 2:
            raise ValueError(f"image_size must have 2 entries, one per direction, got {sizes}.")
        checks.check_spatial(sizes, self.downsample_factor)

    save_pretrained = save_pretrained
    from_pretrained = class_function(from_pretrained)

    def summary(self, image_size: int | Sequence[int] = 32, batch_size: int = 1) -> Summary:
        """Count parameters, multiplications (of convolutions and linear layers) and training
        memory; see `ddpm_lib.nn.summary.summarize`.
        """
        return summarize(self, image_size, batch_size)


def _per_level(values: Sequence[int], levels: int) -> list[int]:
    """Return one value per level, a single one counting for all."""
    return list(values) * levels if len(values) == 1 else list(values)


def _check_arguments(config: dict[str, Any]) -> None:
    """Raise for arguments that are wrong on their own."""
    for name in ("dim", "channels"):
        checks.check_int(name, config[name])
    for name in ("out_channels", "init_dim", "mid_heads", "mid_head_dim", "num_classes"):
        if config[name] is not None:
            checks.check_int(name, config[name])
    checks.check_int("memory_tokens", config["memory_tokens"], 0)
    if not config["dim_mults"]:
        raise ValueError(
            "dim_mults must list at least one multiple of dim, such as (1, 2), got ()."
        )
    levels = len(config["dim_mults"])
    for name in ("dim_mults", "heads", "head_dim"):
        for entry in config[name]:
            checks.check_int(f"Every entry of {name}", entry)
        if len(config[name]) not in (1, levels):
            raise ValueError(
                f"{name} needs one entry for all {levels} levels of dim_mults or one for each, got"
                f" {tuple(config[name])}."
            )
    checks.resolve_attention_levels(config["attention_levels"], levels)
    sinusoidal = config["time_features"] == "sinusoidal"
    for name, least, used in (("dim", 4, sinusoidal), ("fourier_dim", 2, not sinusoidal)):
        if used and (config[name] % 2 or config[name] < least):
            raise ValueError(
                f"{name} must be even and at least {least} (sine and cosine), got {config[name]}."
                f" Use {name}={max(least, config[name] // 2 * 2)}."
            )
    if not config["time_base"] > 0:
        raise ValueError(f"time_base must be positive, got {config['time_base']!r}. Use 10000.")
    if config["norm"] == "group":
        widths = [config["init_dim"] or config["dim"]]
        widths += [config["dim"] * mult for mult in config["dim_mults"]]
        if any(width % 8 for width in widths):
            raise ValueError(f"norm='group' needs widths divisible by 8, got {widths}.")
    checks.check_probability("dropout", config["dropout"], one_allowed=False)
    checks.check_probability("class_drop_prob", config["class_drop_prob"], one_allowed=True)
    checks.check_choice("time_features", config["time_features"], TimeFeatures)
    checks.check_choice("downsampling", config["downsampling"], Downsampling)
    checks.check_choice("norm", config["norm"], BlockNorm)
