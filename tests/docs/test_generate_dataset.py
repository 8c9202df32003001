"""examples/generate_dataset.py: a training set from a prompt, with a tiny random pipeline."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import open_dataset
from locations import ROOT

diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
PROMPTS = ("a red owl", "a green ship")


class TinyTextToImage(diffusers.DiffusionPipeline):
    """A text-to-image pipeline of diffusers' parts; its text encoder is the bytes of the words."""

    calls = 0
    refuses = False

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        height: int = 16,
        width: int = 24,
        num_inference_steps: int = 2,
        guidance_scale: float = 1.0,
        generator: list[torch.Generator] | None = None,
    ) -> Any:
        from diffusers.utils.torch_utils import randn_tensor

        type(self).calls += 1
        words = [list(text.encode())[:8] for text in prompt]
        states = torch.tensor(words, dtype=torch.float32)[..., None].expand(-1, -1, 8) / 128
        x = randn_tensor((len(prompt), 3, height, width), generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            noise = self.unet(x, t, encoder_hidden_states=states * guidance_scale).sample
            x = self.scheduler.step(noise, t, x).prev_sample
        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        pictures = [Image.fromarray(p) for p in pixels]
        flags = [self.refuses] + [False] * (len(pictures) - 1)
        found = diffusers.pipelines.stable_diffusion.StableDiffusionPipelineOutput
        return found(images=pictures, nsfw_content_detected=flags)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved pipeline."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("pipeline")
    TinyTextToImage(unet, diffusers.DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(diffusers, "TinyTextToImage", TinyTextToImage, raising=False)
    monkeypatch.setattr(TinyTextToImage, "calls", 0)
    return importlib.import_module("generate_dataset")


def words(pipeline: Path, output: Path, *more: str, count: int = 5) -> list[str]:
    size = ["--size", "8", "--batch-size", "2", "--count", str(count), "--device", "cpu"]
    return ["--model", str(pipeline), "--output", str(output), *size, *more]


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {
        str(file.relative_to(folder)): np.asarray(Image.open(file))
        for file in sorted(folder.rglob("*.png"))
    }


def test_each_prompt_becomes_a_class(script: Any, pipeline: Path, tmp_path: Path) -> None:
    assert script.main([*words(pipeline, tmp_path / "set"), "--prompt", *PROMPTS]) == 0
    data = open_dataset(tmp_path / "set", image_size=8, labels="folder")
    assert len(data) == 10
    assert data.class_names == ("a-green-ship", "a-red-owl")
    assert data.batch(range(10))["image"].float().std() > 10
    record = json.loads((tmp_path / "set" / "generated.json").read_text("utf-8"))
    assert record["prompt"] == list(PROMPTS)
    assert "output" not in record


def test_it_goes_on_where_it_was_cut_off(script: Any, pipeline: Path, tmp_path: Path) -> None:
    """With more pictures and another batch size: picture i follows from prompt, seed and i."""
    prompt = ["--prompt", PROMPTS[0]]
    assert script.main([*words(pipeline, tmp_path / "whole"), *prompt]) == 0
    assert script.main([*words(pipeline, tmp_path / "parts", count=3), *prompt]) == 0
    (tmp_path / "parts" / "000001.png").unlink()
    kept = (tmp_path / "parts" / "000002.png").stat().st_mtime_ns
    assert script.main([*words(pipeline, tmp_path / "parts"), *prompt, "--batch-size", "3"]) == 0
    assert (tmp_path / "parts" / "000002.png").stat().st_mtime_ns == kept
    whole, parts = pictures(tmp_path / "whole"), pictures(tmp_path / "parts")
    assert whole.keys() == parts.keys() == {f"{i:06d}.png" for i in range(5)}
    for name in whole:  # sums in a batch of another size may round differently
        assert np.abs(whole[name].astype(int) - parts[name].astype(int)).max() <= 1
    assert not np.array_equal(whole["000000.png"], whole["000001.png"])
    before = TinyTextToImage.calls
    assert script.main([*words(pipeline, tmp_path / "whole"), *prompt]) == 0
    assert TinyTextToImage.calls == before


def test_other_options_are_not_mixed_in(script: Any, pipeline: Path, tmp_path: Path) -> None:
    prompt = ["--prompt", PROMPTS[0]]
    script.main([*words(pipeline, tmp_path / "set", count=1), *prompt])
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        script.main([*words(pipeline, tmp_path / "set"), *prompt, "--seed", "1"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cat.txt").touch()
    with pytest.raises(ValueError, match="holds other files"):
        script.main([*words(pipeline, tmp_path / "mine"), *prompt])


def test_what_the_pipeline_holds_back_is_left_out(
    script: Any, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(TinyTextToImage, "refuses", True)
    script.main([*words(pipeline, tmp_path / "set", count=4), "--prompt", PROMPTS[0]])
    assert sorted(pictures(tmp_path / "set")) == ["000001.png", "000003.png"]
    assert "safety checker held 2 back" in capsys.readouterr().out


def test_wrong_input_is_named(
    script: Any, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = ["--prompt", PROMPTS[0]]
    with pytest.raises(ValueError, match="does not take negative_prompt"):
        script.main([*words(pipeline, tmp_path / "a"), *prompt, "--negative-prompt", "text"])
    with pytest.raises(ValueError, match="could not be loaded as a pipeline"):
        script.main([*words(tmp_path / "nothing", tmp_path / "b"), *prompt])
    assert not (tmp_path / "b").exists()
    with pytest.raises(ValueError, match="letters or digits of its own"):
        script.main([*words(pipeline, tmp_path / "c"), "--prompt", "An owl!", "an owl"])
    with pytest.raises(ValueError, match="--count must be at least 1"):
        script.main([*words(pipeline, tmp_path / "c", count=0), *prompt])
    unconditional = diffusers.DDIMPipeline(
        diffusers.UNet2DModel(
            sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",), norm_num_groups=4, layers_per_block=1,
        ),
        diffusers.DDIMScheduler(),
    )  # fmt: skip
    unconditional.save_pretrained(tmp_path / "unconditional")
    with pytest.raises(ValueError, match="DDIMPipeline, which takes no prompt"):
        script.main([*words(tmp_path / "unconditional", tmp_path / "c"), *prompt])
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install 'diffusers"):
        script.main([*words(pipeline, tmp_path / "c"), *prompt])
