"""Transforms between a picture and its tensor: applied before fitting, checked, cached where they
are the same each time, and named by (seed, slot) where they are not.
"""

from __future__ import annotations

import copy
import random
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ddpm_lib import GaussianDiffusion, Trainer, Unet
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.data import BadImagesError, make_loader, open_dataset
from ddpm_lib.data.loader import Drawn
from ddpm_lib.data.transforms import TransformError
from training_helpers import tiny_trainer

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 16, 12, 3)).astype(np.uint8)


def folder(root: Path, n: int = 20) -> Path:
    root.mkdir()
    for k in range(n):
        Image.fromarray(PIXELS[k]).save(root / f"{k:02d}.png")
    return root


def items() -> list[tuple[Image.Image, int]]:
    return [(Image.fromarray(pixels), k % 2) for k, pixels in enumerate(PIXELS)]


def all_of(data: Any) -> torch.Tensor:
    images: torch.Tensor = data.batch(np.arange(len(data)))["image"]
    return images


@pytest.mark.parametrize("kind", ["array", "folder", "items"])
def test_the_picture_is_transformed_in_its_own_size_and_then_fitted(
    tmp_path: Path, kind: str
) -> None:
    given: Any = {"array": lambda: PIXELS, "folder": lambda: folder(tmp_path / "a"), "items": items}
    data = open_dataset(given[kind](), image_size=8, transform=v2.CenterCrop(8))
    expected = torch.from_numpy(PIXELS[:, 4:12, 2:10].transpose(0, 3, 1, 2).copy())
    assert torch.equal(all_of(data), expected)
    assert data.in_memory
    assert "transform: CenterCrop(size=(8, 8))" in data.notes
    small = open_dataset(given[kind]() if kind != "folder" else tmp_path / "a", image_size=8)
    assert small.fingerprint != data.fingerprint


@pytest.mark.parametrize(
    "last",
    [
        [],
        [v2.ToImage()],
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)],
        [lambda picture: np.asarray(picture).transpose(2, 0, 1)],
    ],
)
def test_pictures_bytes_and_floats_give_the_same_images(last: list[Any]) -> None:
    data = open_dataset(PIXELS, image_size=12, transform=v2.Compose([v2.CenterCrop(12), *last]))
    expected = torch.from_numpy(PIXELS[:, 2:14].transpose(0, 3, 1, 2).copy())
    assert torch.equal(all_of(data), expected)


def test_grey_and_transparent_pictures_have_their_mode() -> None:
    seen = []

    def look(picture: Image.Image) -> Image.Image:
        seen.append(picture.mode)
        return picture

    for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        seen.clear()
        open_dataset(PIXELS, image_size=8, channels=channels, transform=look)
        assert set(seen) == {mode}


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            v2.Compose(
                [
                    v2.ToImage(),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize([0.5] * 3, [0.5] * 3),
                ]
            ),
            "Leave Normalize",
        ),
        (lambda picture: picture.convert("L"), "mode L for one of RGB"),
        (lambda picture: np.asarray(picture), r"shape \(\d+, \d+, 3\) for a picture of 3 channels"),
        (lambda picture: torch.zeros(3, 8, 8, dtype=torch.int32), "returned int32"),
        (lambda picture: torch.full((3, 8, 8), float("nan")), "values from nan"),
        (lambda picture: "a", "got str"),
    ],
)
@pytest.mark.parametrize("kind", ["array", "items"])
def test_what_is_no_picture_is_refused_in_a_line(transform: Any, message: str, kind: str) -> None:
    data = PIXELS if kind == "array" else items()
    with pytest.raises(TransformError, match=message) as error:
        open_dataset(data, image_size=8, transform=transform)
    assert "\n" not in str(error.value)


def test_what_cannot_be_called_and_what_fails() -> None:
    for wrong in ("crop", v2.CenterCrop):
        with pytest.raises(TypeError, match="must be a callable"):
            open_dataset(PIXELS, image_size=8, transform=wrong)  # type: ignore[arg-type]

    def fails(picture: Image.Image) -> Image.Image:
        raise KeyError("no such thing")

    with pytest.raises(BadImagesError, match=r"the transform failed .KeyError: 'no such thing'"):
        open_dataset(PIXELS, image_size=8, transform=fails)
    with pytest.raises(ValueError, match=r"transform=.* does not fit built-in images"):
        open_dataset("shapes", image_size=8, transform=v2.CenterCrop(8))


def numpy_crop(picture: Image.Image) -> Image.Image:
    x = int(np.random.randint(0, 8))  # noqa: NPY002
    return picture.crop((x % 4, x, x % 4 + 8, x + 8))


def python_crop(picture: Image.Image) -> Image.Image:
    x = random.randrange(8)
    return picture.crop((x % 4, x, x % 4 + 8, x + 8))


@pytest.mark.parametrize("transform", [v2.RandomCrop(8), numpy_crop, python_crop])
@pytest.mark.parametrize("kind", ["array", "folder", "items"])
def test_random_ones_are_a_function_of_image_and_draw(
    tmp_path: Path, transform: Any, kind: str
) -> None:
    given: Any = {"array": lambda: PIXELS, "folder": lambda: folder(tmp_path / "a"), "items": items}
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    data = open_dataset(given[kind](), image_size=8, transform=transform).steady()
    assert not data.in_memory
    assert data.drawn
    rows, draws = np.arange(20), np.arange(100, 120)
    first = data.batch(rows, draws)["image"]
    assert torch.equal(first, data.batch(rows, draws)["image"])
    assert not torch.equal(first, data.batch(rows, draws + 1)["image"])
    # One by one, in another order and by other processes they are the same.
    assert torch.equal(first[7], data.batch([7], [107])["image"][0])
    batches = [Drawn(rows[i : i + 5], draws[i : i + 5]) for i in range(0, 20, 5)]
    with make_loader(data, batches, num_workers=2) as loader:
        read = torch.cat([batch["image"] for batch in loader])
    assert torch.equal(first, read)
    assert torch.equal(torch.random.get_rng_state(), before)  # the user's generators are untouched


def test_one_version_in_ram_on_request() -> None:
    a, b = (
        open_dataset(PIXELS, image_size=8, transform=v2.RandomCrop(8), cache="ram")
        for _ in range(2)
    )
    assert a.in_memory
    assert torch.equal(all_of(a), all_of(b))


def test_a_generator_of_its_own_cannot_be_repeated() -> None:
    own = np.random.default_rng(5)

    def crop(picture: Image.Image) -> Image.Image:
        x = int(own.integers(0, 8))
        return picture.crop((0, x, 8, x + 8))

    with pytest.raises(TransformError, match="by a generator of its own"):
        open_dataset(PIXELS, image_size=8, transform=crop)


def test_words_for_it_are_the_same_in_every_process() -> None:
    class Crop:
        def __call__(self, picture: Image.Image) -> Image.Image:
            return picture

    words = [
        open_dataset(PIXELS, image_size=8, transform=transform).notes[0]
        for transform in (v2.Lambda(lambda x: x), lambda x: x, Crop(), python_crop)
    ]
    assert not any("0x" in word for word in words)
    assert words[3].endswith("test_transforms.python_crop")


def tiny(image_size: int = 8) -> GaussianDiffusion:
    model = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, attention_levels=())
    return GaussianDiffusion(model, image_size=image_size, timesteps=20)


def test_training_resumes_exactly_on_random_pictures_and_refuses_another_transform(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {
        "batch_size": 4,
        "device": "cpu",
        "progress": False,
        "sample_every": 0,
        "val_every": 0,
        "save_every": 3,
        "learning_rate": 1e-3,
        "lr_schedule": "constant",
        "warmup_steps": 0,
        "ema_decay": 0.9,
        "mixed_precision": "no",
        "num_workers": 0,
    }

    def run(name: str, steps: int, transform: Any = v2.RandomCrop(8)) -> Trainer:  # noqa: B008
        torch.manual_seed(0)
        place = str(tmp_path / name)
        trainer = Trainer(
            tiny(), PIXELS, transform=transform, output_dir=place, max_steps=steps, **options
        )
        trainer.train()
        return trainer

    whole = run("whole", 6)
    run("parts", 3)
    parts = run("parts", 6)
    for (name, a), b in zip(
        whole.diffusion.state_dict().items(), parts.diffusion.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    with pytest.raises(ConfigError):
        run("parts", 9, v2.RandomCrop(7))
    opened, place = open_dataset(PIXELS, image_size=8), str(tmp_path / "other")
    trainer = Trainer(tiny(), opened, transform=v2.CenterCrop(8), output_dir=place)
    with pytest.raises(ConfigError, match="give it to open_dataset"):
        trainer.prepare()


def _inverted(picture: Image.Image) -> Image.Image:
    return Image.fromarray(255 - np.asarray(picture))


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_paths_beside_an_open_set_get_its_transform(tmp_path: Path, cache: Any) -> None:
    """Held-out images and additions are read like what is trained on, once."""
    for name in ("a", "b", "c"):
        folder(tmp_path / name)
    for file in (tmp_path / "c").iterdir():
        Image.open(file).transpose(Image.Transpose.ROTATE_180).save(file)
    way: dict[str, Any] = {"image_size": 8, "cache": cache, "num_workers": 0}
    train = open_dataset(tmp_path / "a", transform=_inverted, **way)
    trainer = tiny_trainer(
        tmp_path / "run",
        data=train,
        val_data=str(tmp_path / "b"),
        add_data=tmp_path / "c",
        val_every=2,
    )
    trainer.prepare()
    assert trainer.held_out is not None
    assert torch.equal(all_of(trainer.held_out), all_of(train))
    assert torch.equal(all_of(trainer.dataset)[20:], all_of(train).flip(2, 3))

    plain = open_dataset(tmp_path / "b", **way)
    trainer = tiny_trainer(tmp_path / "other", data=train, val_data=plain, val_every=2)
    trainer.prepare()
    assert trainer.held_out is not None
    assert torch.equal(all_of(trainer.held_out), all_of(plain))


def test_a_transform_that_pickling_left_behind_is_missed_only_where_it_is_needed(
    tmp_path: Path,
) -> None:
    folder(tmp_path / "a")
    data = open_dataset(tmp_path / "a", image_size=8, transform=lambda p: _inverted(p))
    again = ForkingPickler.loads(ForkingPickler.dumps(data))
    assert copy.deepcopy(data).applied.transform is data.applied.transform
    tiny_trainer(tmp_path / "run", data=again).prepare()
    with pytest.raises(ConfigError, match=r"transform=.*lambda.*Open these with open_dataset"):
        tiny_trainer(
            tmp_path / "other", data=again, val_data=str(tmp_path / "a"), val_every=2
        ).prepare()
