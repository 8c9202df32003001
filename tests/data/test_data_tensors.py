from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.data import tensor_dataset
from training_helpers import tiny_trainer


@pytest.mark.parametrize(("dims", "size"), [(1, (16,)), (3, (4, 4, 8))])
def test_sequences_and_volumes_train_and_sample(
    tmp_path: Path, dims: int, size: tuple[int, ...]
) -> None:
    """The same classes, with an array or a torch Dataset, and resuming too."""
    torch.manual_seed(0)
    values = torch.rand(20, 2, *size)
    model = Unet(dim=8, dim_mults=(1, 2), channels=2, dims=dims, blocks_per_level=1)
    trainer = tiny_trainer(
        tmp_path,
        GaussianDiffusion(model, image_size=size, timesteps=20),
        values,
        val_every=3,
        val_fraction=0.2,
    )
    assert trainer.train().status == "finished"
    assert trainer.sample(3, num_steps=2).shape == (3, 2, *size)
    again = tiny_trainer(
        tmp_path,
        GaussianDiffusion(model, image_size=size, timesteps=20),
        torch.utils.data.TensorDataset(values),
        val_every=3,
        val_fraction=0.2,
        max_steps=8,
    )
    assert again.train().step == 8


def test_wrong_data_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]; got \[-1"):
        tensor_dataset(torch.linspace(-1, 1, 24).view(2, 1, 12))
    with pytest.raises(TypeError, match="int64"):
        tensor_dataset(np.zeros((2, 1, 12), dtype=np.int64))
    with pytest.raises(ValueError, match=r"\(n, channels, \*spatial\).*\(4, 3\)"):
        tensor_dataset(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="labels must be 2 class numbers"):
        tensor_dataset(torch.zeros(2, 1, 4), labels=[0])
    with pytest.raises(ValueError, match="no name"):
        tensor_dataset(torch.zeros(2, 1, 4), labels=[0, 2], class_names=["a", "b"])


def test_labels_and_fingerprint() -> None:
    data = tensor_dataset(torch.zeros(3, 1, 4), labels=[0, 1, 1], class_names=["a", "b"])
    assert data.batch([1, 2])["class_label"].tolist() == [1, 1]
    assert (data.num_classes, data.image_size, data.channels) == (2, (4,), 1)
    other = torch.zeros(3, 1, 4)
    other[0, 0, 0] = 0.5
    assert tensor_dataset(other, labels=[0, 1, 1]).fingerprint != data.fingerprint
