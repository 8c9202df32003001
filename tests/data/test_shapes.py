"""The built-in shapes."""

import numpy as np
import pytest
import torch

from ddpm_lib.data import Shapes, open_dataset
from ddpm_lib.data.shapes import CLASS_NAMES, draw_shapes


def test_a_picture_depends_on_its_index_alone():
    few, labels = draw_shapes(np.array([700, 3, 3]), (16, 16))
    many, all_labels = draw_shapes(np.arange(800), (16, 16))
    assert (few == many[[700, 3, 3]]).all()
    assert (labels == all_labels[[700, 3, 3]]).all()
    assert (draw_shapes(np.arange(8), (16, 16), seed=1)[0] != many[:8]).any()


def test_dataset():
    data = Shapes(16, n=120)
    assert data.class_names == CLASS_NAMES
    assert data.in_memory
    assert torch.bincount(data.labels, minlength=6).min() > 5
    assert data[5]["image"].dtype == torch.uint8
    assert data.fingerprint == Shapes(16, n=120).fingerprint
    others = [
        Shapes(16, n=121),
        Shapes(17, n=120),
        Shapes(16, n=120, seed=1),
        Shapes(16, n=120, channels=1),
    ]
    assert len({d.fingerprint for d in [data, *others]}) == 5


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [8, 31, (24, 40), (64, 9)])
def test_every_size_shows_one_shape_inside_the_frame(size, channels):
    data = Shapes(size, n=60, channels=channels)
    height, width = (size, size) if isinstance(size, int) else size
    images = data.batch(range(60))["image"].int()
    assert images.shape == (60, channels, height, width)
    picture = images[:, -1:] if channels == 4 else images
    corner = picture[:, :, :1, :1]
    differs = ((picture - corner).abs().sum(1) > 30).float()
    share = differs.mean((1, 2)) * (height * width) / min(height, width) ** 2
    assert share.min() > 0.06, "the shape is large"
    assert share.max() < 0.62
    assert not differs[:, 0].any()
    assert not differs[:, :, 0].any()
    assert not differs[:, -1].any()
    assert not differs[:, :, -1].any()


def test_shapes_differ_by_class():
    images, labels = draw_shapes(np.arange(600), (32, 32), channels=4)
    cover = images[:, 3].astype(float) / 255
    box = np.array(
        [
            np.ptp(np.nonzero(c.max(0) > 0.5)[0]) * np.ptp(np.nonzero(c.max(1) > 0.5)[0]) + 1
            for c in cover
        ]
    )
    filled = {
        name: float((cover.sum((1, 2)) / box)[labels == k].mean())
        for k, name in enumerate(CLASS_NAMES)
    }
    assert filled["square"] > filled["circle"] > filled["ring"] > filled["star"]
    assert filled["cross"] > filled["star"]


def test_opened_by_name():
    for name in (None, "shapes"):
        assert isinstance(open_dataset(name, image_size=16), Shapes)
    assert open_dataset("shapes", image_size=16, labels="none").class_names is None


@pytest.mark.parametrize("options", [{"size": 7}, {"n": 0}, {"channels": 2}, {"size": (8, 4)}])
def test_wrong_options(options):
    with pytest.raises(ValueError):
        Shapes(**options)
