"""What makes the search for copies fast finds what the plain way finds: views, maps, closest ones,
laying over each other.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lib.data.auditing import descriptors
from ddpm_lib.data.auditing.alignment import Halved, coarse, fit
from ddpm_lib.data.auditing.descriptors import (
    VIEWS,
    WHOLE,
    Descriptor,
    close_pairs,
    grid_of,
    placed,
    warped,
)

N = 1300


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Smooth noise, a hundred of it mirrored, a hundred cut."""
    drawn = torch.rand(N, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = F.avg_pool2d(drawn, 5, 1, 2)
    smooth[1000:1100] = smooth[:100].flip(3)
    smooth[1100:1200] = warped(smooth[100:200], placed(VIEWS[2][0], False, 100))
    return (255 * smooth).to(torch.uint8)


@pytest.fixture(scope="module")
def descriptor(pictures: Tensor) -> Descriptor:
    return Descriptor.learn(pictures, torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 24), (7, 5)])
def test_grids_are_those_of_torch(height: int, width: int) -> None:
    theta = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = F.affine_grid(theta, [9, 1, height, width], align_corners=False)
    torch.testing.assert_close(grid_of(theta, height, width), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_views_are_those_of_warped_pictures(
    view: int, pictures: Tensor, descriptor: Descriptor
) -> None:
    """Two small products instead of a picture laid out, up to rounding."""
    box, flip = VIEWS[view]
    some = pictures[:50]
    laid = warped(some.float() / 255, placed(box, flip, len(some)))
    expected = (descriptors._raw(laid) - descriptor.mean) @ descriptor.directions
    (found,) = descriptor.views(some, [VIEWS[view]])
    torch.testing.assert_close(found, F.normalize(expected, dim=1), rtol=0, atol=1e-5)


def plainly(asked: Tensor, described: Tensor, view: int) -> set[tuple[int, int]]:
    """All similarities at once, the highest of each row."""
    close = asked @ described.T
    own = torch.arange(len(asked))
    close[own, own] = -1.0
    most, less = next(rest for size, *rest in descriptors._MOST if close.shape[1] <= size)
    least = descriptors._LEAST[VIEWS[view][0] == WHOLE] - less
    values, columns = close.topk(int(most), 1)
    rows = own[:, None].expand_as(columns)[values > least]
    return set(zip(rows.tolist(), columns[values > least].tolist()))


@pytest.mark.parametrize("view", [0, 1, 4])
@pytest.mark.parametrize(("rows", "columns", "group"), [(512, 2048, 32), (64, 256, 8), (7, 12, 4)])
def test_groups_find_what_all_similarities_find(
    rows: int,
    columns: int,
    group: int,
    view: int,
    pictures: Tensor,
    descriptor: Descriptor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However rows and columns are cut, and whether a picture meets itself in a block or not."""
    for name, value in (("_ROWS", rows), ("_COLUMNS", columns), ("_GROUP", group)):
        monkeypatch.setattr(descriptors, name, value)
    described = descriptor(pictures)
    (asked,) = descriptor.views(pictures, [VIEWS[view]])
    expected = plainly(asked, described, view)
    assert len(expected) > 1000
    found = descriptors._closest(asked, described, 0, 0, view)
    assert set(zip(found.seen.tolist(), found.like.tolist())) == expected
    later = descriptors._closest(asked[1000:], described, 1000, 0, view)
    want = {pair for pair in expected if pair[0] >= 1000}
    assert set(zip(later.seen.tolist(), later.like.tolist())) == want


def test_blocks_find_what_one_block_finds(
    pictures: Tensor, descriptor: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was mirrored or cut, whichever block its other is in."""
    described = descriptor(pictures)
    for block in (4096, 300):
        monkeypatch.setattr(descriptors, "_BLOCK", block)
        found = close_pairs(described, pictures, descriptor, N, lambda total: iter(range(total)))
        pairs = set(zip(found.seen.tolist(), found.like.tolist()))
        pairs |= {(b, a) for a, b in pairs}
        made = [(k, 1000 + k) for k in range(200)]
        assert [pair for pair in made if pair not in pairs] == []


def test_what_is_asked_of_a_picture_is_the_same_for_all_that_are_laid_over_it(
    pictures: Tensor,
) -> None:
    halved = Halved.of(pictures)
    moving = torch.arange(60)
    still = 100 + moving % 7  # each of seven many times
    start = placed(WHOLE, False, len(moving))
    theta, _ = coarse(halved, moving, still, start, 3)
    soft, pairs = halved.soft, zip(moving.tolist(), still.tolist())
    alone = [fit(soft[i : i + 1], soft[j : j + 1], start[:1], 3) for i, j in pairs]
    torch.testing.assert_close(theta, torch.cat(alone), rtol=0, atol=1e-4)


def test_a_shift_is_undone(pictures: Tensor) -> None:
    """The maps that were applied are found again, to a tenth of a pixel of 16."""
    theta = placed(WHOLE, False, 100)
    theta[:, 0, 2], theta[:, 1, 2] = 0.08, -0.05
    moved = (255 * warped(pictures[:100].float() / 255, theta)).to(torch.uint8)
    both = Halved.of(torch.cat([pictures[:100], moved]))
    rows = torch.arange(100)
    found, agree = coarse(both, rows, 100 + rows, placed(WHOLE, False, 100), 8)
    assert float(agree.median()) > 0.9
    off = (found - theta)[:, :, 2].abs().median()
    assert float(off) < 0.1 * 2 / 16
