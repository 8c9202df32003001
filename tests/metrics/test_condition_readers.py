"""Reading conditions back: overlaps in closed form, and readers that learn what can be seen."""

from __future__ import annotations

import math

import pytest
import torch

from ddpm_lib.metrics.condition_readers import Reader, mean_iou, target_of

CPU = torch.device("cpu")


def test_iou_in_closed_form() -> None:
    wanted = torch.zeros(1, 4, 4, dtype=torch.uint8)
    wanted[0, :2] = 1
    read = torch.zeros(1, 4, 4, dtype=torch.long)
    read[0, :1] = 1
    # Class 1: 4 of 8 pixels; class 0: 8 of 12; class 2 is in neither.
    assert mean_iou(read, wanted, 3).item() == pytest.approx((0.5 + 8 / 12) / 2)
    assert mean_iou(wanted.long(), wanted, 3).item() == 1.0
    wanted[0, 1] = 255  # unknown pixels do not count
    assert mean_iou(read, wanted, 3).item() == 1.0


def pictures(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Black pictures with a square of a height of its own; and the height."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(n, 3, 16, 16, dtype=torch.uint8)
    heights = torch.randint(2, 15, (n,), generator=generator)
    for image, height in zip(images, heights, strict=True):
        image[:, :height, 4:12] = 200
    return images, heights


@pytest.mark.parametrize("kind", ["number", "angle", "label", "tags", "mask", "image"])
def test_what_can_be_seen_is_read(kind: str) -> None:
    images, heights = pictures(160)
    spec, values = {
        "number": ({}, heights.float()),
        "angle": ({"period": 32}, heights.float()),
        "label": ({"names": ["a", "b"]}, (heights > 8).long()),
        "tags": ({"names": ["a", "b"]}, torch.stack([heights > 8, heights < 5], 1).float()),
        "mask": ({"classes": 2}, (images[:, 0] > 0).to(torch.uint8)),
        "image": ({"channels": 1}, 255 - images[:, :1]),
    }[kind]
    target = target_of("it", {"kind": kind, **spec})
    reader = Reader(target, images[:128], values[:128], CPU, 0, 60)
    right = reader.errors(images[128:], values[128:]).mean()
    wrong = reader.errors(images[128:], values[128:].roll(7, 0)).mean()
    assert right < wrong / 2


def test_readers_are_the_same_every_time() -> None:
    images, heights = pictures(40)
    target = target_of("it", {"kind": "number"})
    torch.manual_seed(1)
    a = Reader(target, images, heights.float(), CPU, 0, 5).errors(images, heights.float())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    b = Reader(target, images, heights.float(), CPU, 0, 5).errors(images, heights.float())
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_angle_is_wrong_by_the_shorter_way() -> None:
    images, _ = pictures(8)
    reader = Reader(
        target_of("turn", {"kind": "angle"}), images, torch.full((8,), 359.0), CPU, 0, 60
    )
    assert reader.errors(images, torch.full((8,), 1.0)).max() < 20


def test_unknown_values_are_left_out() -> None:
    images, heights = pictures(32)
    values = heights.float()
    values[3] = math.nan
    reader = Reader(target_of("it", {"kind": "number"}), images, values, CPU, 0, 20)
    errors = reader.errors(images, values)
    assert errors.isnan().tolist() == [i == 3 for i in range(32)]
