"""How good and how new samples are: distances between sets of images, nearest neighbours,
memorisation, with honest intervals.

The functions work on features (n, d); `make_extractor` makes them from images. torch-fidelity and
pytorch-fid are imported only when their networks are asked for. `ddpm_lib.evaluation` puts it all
together.
"""

from ddpm_lib.metrics.bootstrap import bootstrap_interval, share_interval
from ddpm_lib.metrics.extractors import EXTRACTORS, FEATURES, Extractor, make_extractor, to_rgb
from ddpm_lib.metrics.frechet import frechet_distance, frechet_infinity, frechet_of_features
from ddpm_lib.metrics.kernel import inception_score, kernel_distance, mmd2
from ddpm_lib.metrics.memorisation import (
    CopyingTest,
    CopyTest,
    copies,
    copy_test,
    copying_test,
    measure_copying,
)
from ddpm_lib.metrics.moments import (
    Moments,
    Statistics,
    read_statistics,
    save_statistics,
    statistics_of,
)
from ddpm_lib.metrics.neighbours import manifolds, nearest_distances
from ddpm_lib.metrics.weights import (
    WEIGHTS,
    MissingWeightsError,
    fetch_weights,
    find_weights,
    get_weights,
)

__all__ = [
    "EXTRACTORS",
    "FEATURES",
    "WEIGHTS",
    "CopyTest",
    "CopyingTest",
    "Extractor",
    "MissingWeightsError",
    "Moments",
    "Statistics",
    "bootstrap_interval",
    "copies",
    "copy_test",
    "copying_test",
    "fetch_weights",
    "find_weights",
    "frechet_distance",
    "frechet_infinity",
    "frechet_of_features",
    "get_weights",
    "inception_score",
    "kernel_distance",
    "make_extractor",
    "manifolds",
    "measure_copying",
    "mmd2",
    "nearest_distances",
    "read_statistics",
    "save_statistics",
    "share_interval",
    "statistics_of",
    "to_rgb",
]
