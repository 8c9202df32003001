"""Operators of inverse problems: adjoints, closed forms, what other libraries make, and words that
name them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpm_lib.images import shrink
from ddpm_lib.process.linear_maps import Linear, Operator
from ddpm_lib.process.operators import (
    OPERATORS,
    Blur,
    Downsampling,
    Grey,
    Mask,
    Noise,
    Product,
    make_operator,
    split_parts,
)

CPU = torch.device("cpu")
SHAPES = [(3, 8, 12), (3, 12), (3, 4, 6, 8)]


def examples(shape: tuple[int, ...]) -> dict[str, Operator]:
    """An operator of each name, and products, for images of a shape."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.rand(2, 1, *shape[1:], generator=generator) < 0.4
    found: dict[str, Operator] = {
        "blur": Blur(1.3),
        "downsampling": Downsampling(2),
        "mask": Mask(hidden),
        "noise": Noise(0.1),
        "grey": Grey(),
    }
    assert set(found) == set(OPERATORS)
    weights = torch.randn(5, shape[-1], generator=generator, dtype=torch.float64)
    found["linear"] = Linear(lambda x: x @ weights.T.to(x), lambda y: y @ weights.to(y))
    found["differentiated"] = Linear(lambda x: x[..., ::2] - x[..., 1::2])
    found["product"] = Product((Mask(hidden), Blur(0.8), Grey(), Downsampling(2), Noise(0.1)))
    found["masked last"] = Product((Blur(3.0), Mask(hidden)))
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", examples(SHAPES[0]))
def test_the_adjoint_of_every_operator(name: str, shape: tuple[int, ...]) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩ for random x and y, in float64."""
    operator = examples(shape)[name].prepared(2, shape, CPU)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    ax = operator.apply(x)
    assert tuple(ax.shape[1:]) == operator.out_shape(shape)
    y = torch.randn(ax.shape, generator=generator, dtype=torch.float64)
    back = operator.adjoint(y, shape)
    assert back.shape == x.shape
    # For each image by itself: none may see another's.
    there, here = ((a * b).flatten(1).sum(1) for a, b in ((ax, y), (x, back)))
    torch.testing.assert_close(there, here, rtol=1e-10, atol=1e-10)
    assert float(ax.norm()) > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_constants_stay_what_they_are(shape: tuple[int, ...]) -> None:
    """What `averages` promises: measurements of images in [0, 1] are in [0, 1]."""
    grey = torch.full((1, *shape), 0.37, dtype=torch.float64)
    for operator in (Blur(0.5), Blur(20.0), Downsampling(2), Grey(), Noise(0.1)):
        found = operator.apply(grey)
        torch.testing.assert_close(found, torch.full_like(found, 0.37))
        assert operator.averages


def test_blur_is_that_of_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    x = np.random.default_rng(0).normal(size=(17, 9))
    for std in (0.4, 1.5, 4.0):
        ours = Blur(std).apply(torch.from_numpy(x)[None, None])[0, 0].numpy()
        np.testing.assert_allclose(ours, gaussian_filter(x, std, mode="reflect"), atol=1e-12)


def test_downsampling_and_grey_are_those_of_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    grey = Grey().apply(x)[0, 0].numpy()
    assert np.abs(grey - np.asarray(picture.convert("L"))).max() < 1.0
    small = Downsampling(4).apply(x)
    torch.testing.assert_close(small, shrink(x, 4))
    theirs = np.asarray(picture.resize((6, 4), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(small[0].clamp(0, 255).numpy() - theirs).max() < 1.0


def test_words() -> None:
    assert make_operator("blur:2") == Blur(2.0)
    assert make_operator("downsampling:4") == Downsampling(4)
    assert make_operator(" grey ") == Grey()
    noisy = make_operator("blur:1.5+downsampling:2+noise:5e-2")
    assert isinstance(noisy, Product)
    assert noisy.parts == (Blur(1.5), Downsampling(2), Noise(0.05))
    assert noisy.noise_std == 0.05
    assert noisy.averages
    assert make_operator("blur:1").noise_std == 0
    assert split_parts("mask:a+b.png+blur:1e+1") == ["mask:a+b.png", "blur:1e+1"]
    read: list[str] = []

    def mask(path: str) -> Tensor:
        read.append(path)
        return torch.zeros(4, 4)

    assert isinstance(make_operator("mask:C:\\holes+.png+noise:0", mask), Product)
    assert read == ["C:\\holes+.png"]
    own = Blur(3.0)
    assert make_operator(own) is own


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("blurr:2", "Did you mean 'blur'"),
        ("downsample:2", "Did you mean 'downsampling'"),
        ("", "Unknown operator ''"),
        ("blur", r"takes a number, its std, as in blur:2; got nothing"),
        ("blur:wide", r"got 'wide'"),
        ("blur:nan", r"got 'nan'"),
        ("blur:0", "above 0"),
        ("blur:inf", "above 0"),
        ("downsampling:2.5", "whole number of at least 2"),
        ("downsampling:1", "whole number of at least 2"),
        ("downsampling:inf", "whole number of at least 2"),
        ("noise:-1", "at least 0"),
        ("grey:3", "takes no value"),
        ("mask:a.png", r"pass Mask\(mask\)"),
        ("noise:0.1+blur:2", "write it last"),
        ("blur:2+", r"got '2\+'"),
    ],
)
def test_words_that_name_nothing(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_operator(word)


def test_images_that_do_not_fit() -> None:
    for operator, shape, message in [
        (Downsampling(3), (3, 8, 8), "divisible by 3"),
        (Grey(), (1, 8, 8), "these have 1"),
        (Mask(torch.zeros(7, 8)), (3, 8, 8), "The mask must have the shape"),
        (Mask(torch.full((8, 8), 0.5)), (3, 8, 8), "True or 1"),
        (Mask(torch.ones(8, 8)), (3, 8, 8), "hides everything"),
        (Product((Downsampling(2), Downsampling(3))), (3, 8, 8), "divisible by 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            operator.prepared(2, shape, CPU)
    with pytest.raises(TypeError, match="a word such as 'blur:2'"):
        make_operator(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one part"):
        Product(())


def test_maps_of_a_caller_that_are_none() -> None:
    for operator, message in [
        (Linear(lambda x: x + 0.1), r"not linear: .*A\(0\)"),
        (Linear(lambda x: x.clamp(-0.5, 0.5)), "not linear"),
        (Linear(lambda x: x - x.mean(0, keepdim=True)), "mixes images"),
        (Linear(lambda x: 2 * x, lambda y: y), "not the adjoint"),
        (Linear(lambda x: x[..., :4], lambda y: y), "back to images of shape"),
        (Linear(lambda x: x.sum()), "measurements"),
    ]:
        with pytest.raises(ValueError, match=message):
            operator.prepared(3, (1, 8), CPU)


def test_masks_of_several_images() -> None:
    mask = torch.zeros(3, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0], mask[2, 0, 1] = True, True
    ready = Product((Blur(1.0), Mask(mask))).prepared(3, (1, 2, 2), CPU)
    x = torch.rand(3, 1, 2, 2)
    whole = ready.apply(x)
    assert torch.equal(ready.rows(1, 3).apply(x[1:]), whole[1:])
    assert torch.equal(whole[0, 0, 0], torch.zeros(2))
    known = ready.known()
    assert known is not None
    assert torch.equal(known, ~mask)
    # A mask in the middle is seen by what comes after.
    assert Product((Mask(mask), Blur(1.0))).known() is None
    assert Product((Mask(mask), Noise(0.1))).prepared(3, (1, 2, 2), CPU).known() is not None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", examples(SHAPES[0]))
def test_the_short_way_to_the_inverse(name: str, shape: tuple[int, ...]) -> None:
    """(a·A Aᵀ + b) v is what it was solved for."""
    operator = examples(shape)[name].prepared(2, shape, CPU)
    out = operator.out_shape(shape)
    y = torch.randn(2, *out, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known = operator.known()
    y = y if known is None else torch.where(known, y, 0.0)
    v = operator.gram_inverse(y, shape, 0.3, 0.01)
    if v is None:
        assert name in ("linear", "differentiated", "product", "masked last")
        return
    back = 0.3 * operator.apply(operator.adjoint(v, shape)) + 0.01 * v
    torch.testing.assert_close(back, y)


def test_the_short_way_through_a_product() -> None:
    shape = (3, 8, 12)
    product = make_operator("blur:1+grey+downsampling:2+noise:0.1")
    y = torch.randn(2, *product.out_shape(shape), dtype=torch.float64)
    v = product.gram_inverse(y, shape, 0.3, 0.01)
    assert v is not None
    back = 0.3 * product.apply(product.adjoint(v, shape)) + 0.01 * v
    torch.testing.assert_close(back, y)


@pytest.mark.parametrize("word", ["blur:1.1", "downsampling:3", "grey"])
def test_gradients_pass_what_was_first_used_in_inference(word: str) -> None:
    """The matrices are kept between calls."""
    operator, shape = make_operator(word), (3, 6, 9)
    x = torch.rand(1, *shape)
    with torch.inference_mode():
        y = operator.apply(x.clone())
    free = x.requires_grad_()
    operator.apply(free).square().sum().backward()
    assert free.grad is not None
    torch.testing.assert_close(free.grad, 2 * operator.adjoint(y, shape))
