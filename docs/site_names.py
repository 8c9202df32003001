"""Which public names have a page in the reference, by room."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublicRoom:
    """One page of the reference.

    Attributes:
        file: Its name, without suffix.
        title: Its heading.
        about: What stands above the names.
        names: Dotted names, in the order of the page.
        examples: The part of docs/names.md with its examples.
    """

    file: str
    title: str
    about: str
    names: tuple[str, ...]
    examples: str


def _of(room: str, *names: str) -> tuple[str, ...]:
    return tuple(f"ddpm_lib.{room}.{name}" if room else f"ddpm_lib.{name}" for name in names)


PUBLIC_ROOMS = (
    PublicRoom(
        "main",
        "The names of the library",
        "`from ddpm_lib import …`: what most scripts need.",
        _of(
            "",
            "Unet",
            "GaussianDiffusion",
            "Trainer",
            "TrainingConfig",
            "Callback",
            "load_run",
            "audit",
            "plan",
            "distill",
            "ImageDataset",
            "Shapes",
            "open_dataset",
            "Schedule",
            "evaluate",
            "Evaluate",
            "register_network",
        ),
        "training-and-runs",
    ),
    PublicRoom(
        "networks",
        "Networks and conditions",
        "`ddpm_lib.nn`: networks, and what they can be told besides image and time.",
        _of(
            "nn",
            "MLP",
            "NoiseLevelUnet",
            "EdmUnet",
            "LucidrainsUnet",
            "TimeBlindUnet",
            "NoisyClassifier",
            "Conditioner",
            "ClassLabel",
            "LowRes",
            "LowResNoise",
            "SelfCondition",
            "Augmentation",
            "preset_config",
            "register_text_encoder",
        ),
        "networks-and-conditions",
    ),
    PublicRoom(
        "samplers",
        "Samplers",
        "`ddpm_lib.samplers`: from noise to images; [sampling.md](../sampling.md) says which one.",
        _of(
            "samplers",
            "Sampler",
            "DDPM",
            "DDIM",
            "Euler",
            "Heun",
            "DPMSolver2M",
            "DPMSolver2MSDE",
            "DPMSolver2S",
            "DPMSolver3M",
            "UniPC",
            "DEIS",
            "Consistency",
            "make_sampler",
            "sample_loop",
            "Prediction",
            "posterior_mean",
        ),
        "samplers",
    ),
    PublicRoom(
        "data",
        "Data",
        "`ddpm_lib.data`: from a path, a name or an object to images.",
        _of(
            "data",
            "DecodeSpec",
            "BadImagesError",
            "make_loader",
            "tensor_dataset",
            "prepare_sysu",
            "SysuSummary",
            "Toy",
            "toy_points",
            "points_to_values",
            "values_to_points",
            "available_cpus",
            "available_memory",
            "default_num_workers",
        ),
        "data",
    ),
    PublicRoom(
        "training",
        "Training and runs",
        "`ddpm_lib.training`: the loop, its results and its errors.",
        _of(
            "training",
            "TrainingResult",
            "LoadedRun",
            "SynthesisedEma",
            "synthesise_ema",
            "ConfigError",
            "CheckpointError",
            "DivergedError",
            "OutOfMemoryError",
            "LostProcessError",
        ),
        "training-and-runs",
    ),
    PublicRoom(
        "evaluation",
        "Evaluation and metrics",
        "`ddpm_lib.evaluation` and `ddpm_lib.metrics`: scores, and the functions behind them.",
        (
            *_of(
                "evaluation",
                "Evaluation",
                "EvaluationOptions",
                "Score",
                "Metric",
                "evaluate_checkpoints",
                "mean_score",
                "Distilled",
            ),
            *_of(
                "metrics",
                "Extractor",
                "make_extractor",
                "Moments",
                "Statistics",
                "statistics_of",
                "read_statistics",
                "save_statistics",
                "frechet_distance",
                "frechet_infinity",
                "kernel_distance",
                "inception_score",
                "manifolds",
                "nearest_distances",
                "copies",
                "copy_test",
                "CopyTest",
                "bootstrap_interval",
                "fetch_weights",
                "find_weights",
                "MissingWeightsError",
            ),
        ),
        "evaluation-and-metrics",
    ),
    PublicRoom(
        "experiments",
        "Ablations and other libraries' files",
        "`ddpm_lib.ablation` and `ddpm_lib.interop`.",
        (
            *_of("ablation", "ablate", "Grid", "Cell", "Outcome", "AblationResult"),
            *_of("interop", "read_foreign", "Imported", "Reader", "Opened"),
        ),
        "ablations",
    ),
)
