"""Images for training: folders, 🤗 datasets, arrays, any torch Dataset, the built-in Shapes, and
toys in the plane.

`open_dataset` returns an `ImageDataset`; `make_loader` turns batches of indices into batches of
tensors; `prepare_sysu` lays out the SYSU-Shape dataset.
"""

from ddpm_lib.data.dataset import BadImagesError, ImageDataset
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.loader import BatchStream, make_loader
from ddpm_lib.data.opening import open_dataset
from ddpm_lib.data.shapes import Shapes
from ddpm_lib.data.sysu import SysuSummary, prepare_sysu
from ddpm_lib.data.tensors import tensor_dataset
from ddpm_lib.data.toys import TOYS, Toy, points_to_values, toy_points, values_to_points
from ddpm_lib.data.workers import check_num_workers, default_num_workers, worker_init
from ddpm_lib.runtime.limits import available_cpus, available_memory

__all__ = [
    "TOYS",
    "BadImagesError",
    "BatchStream",
    "DecodeSpec",
    "ImageDataset",
    "Shapes",
    "SysuSummary",
    "Toy",
    "available_cpus",
    "available_memory",
    "check_num_workers",
    "default_num_workers",
    "make_loader",
    "open_dataset",
    "points_to_values",
    "prepare_sysu",
    "tensor_dataset",
    "toy_points",
    "values_to_points",
    "worker_init",
]
