"""What the distributed tests run under torchrun: run_two_ranks.py OUT [single]."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))


def digest(tensors) -> str:
    h = hashlib.sha256()
    for tensor in tensors:
        h.update(tensor.detach().contiguous().numpy().tobytes())
    return h.hexdigest()


def thread_names() -> list[str]:
    """Names of all threads of this process, also those Python does not know."""
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def main() -> None:
    from ddpm_lib import GaussianDiffusion, Shapes, Unet
    from ddpm_lib.training import Callback
    from training_helpers import StopAt, tiny_diffusion, tiny_trainer

    out, single = Path(sys.argv[1]), len(sys.argv) > 2

    class SeenImages(Callback):
        def on_train_start(self, trainer):
            self.seen = []
            real = trainer.dataset.batch
            trainer.dataset.batch = lambda indices, *draws: (
                self.seen.extend(int(i) for i in indices),
                real(indices, *draws),
            )[1]

    options = {
        "batch_size": 6,
        "max_steps": 8,
        "log_every": 2,
        "val_every": 4,
        "sample_every": 4,
        "sample_count": 3,
        "sample_steps": 2,
        "accumulation_steps": 2 if single else 1,
        "val_data": None,
        "val_fraction": 0.0,
        "posthoc_ema": (0.1,),
        "posthoc_every": 4,
    }

    def trainer(run: str, callbacks=(), **changes):
        data = Shapes(size=8, n=24)
        return tiny_trainer(
            out / run, tiny_diffusion(), data, callbacks=list(callbacks), **options | changes
        )

    seen = SeenImages()
    watched = trainer("watched", [seen], max_steps=4, val_every=0, sample_every=0)
    watched.train()
    first_epoch = list(seen.seen)
    whole = trainer("whole", val_fraction=0.25)
    whole.train()
    stop = trainer("cut", [StopAt(3)], val_fraction=0.25).train()
    trainer("cut", val_fraction=0.25).train()
    start = {"init_from": str(out / "whole"), "pull_to_start": 0.2, "freeze": ("time_embedding",)}
    other = tiny_diffusion(seed=1 + whole.rank)  # what a rank begins with must not matter
    begun = {"max_steps": 3, "val_every": 0, "sample_every": 0, **start}
    tuned = tiny_trainer(out / "tuned", other, Shapes(size=8, n=24), **options | begun)
    tuned.train()
    torch.manual_seed(0)
    learns = GaussianDiffusion(
        Unet(dim=8, dim_mults=(1,), blocks_per_level=1),
        image_size=8,
        timesteps=4,
        time_sampler="loss_aware",
        time_sampler_options={"history": 2},
    )
    aware = tiny_trainer(
        out / "aware", learns, Shapes(size=8, n=24), **options | {"val_every": 0, "sample_every": 0}
    )
    aware.train()
    calls = []
    real = whole.diffusion.sample
    whole.diffusion.sample = lambda n, **kw: (calls.append(n), real(n, **kw))[1]
    images = whole.sample(5, sampler="ddim", num_steps=2)
    report = {
        "weights": digest(whole.diffusion.model.parameters()),
        "tuned": digest(tuned.diffusion.model.parameters()),
        "started_from": str(tuned.started_from),
        "ema": digest(whole.ema.network().parameters()),
        "posthoc": digest(whole.posthoc.tensors().values()),
        "first_epoch": first_epoch,
        "sample_shape": list(images.shape),
        "samples": digest([images]),
        "sampled_here": sum(calls),
        "stopped_at": stop.step,
        "time_sampler": {
            k: v.tolist() if hasattr(v, "tolist") else v
            for k, v in learns.time_sampler.state_dict().items()
        },
        "probabilities": learns.time_sampler.probabilities.tolist(),
        "aware_weights": digest(learns.model.parameters()),
    }
    (out / f"rank{whole.rank}.json").write_text(json.dumps(report))
    whole.close()
    (out / f"threads{whole.rank}.json").write_text(json.dumps(thread_names()))


if __name__ == "__main__":
    main()
