"""Model cards: what they say is what the run recorded, the hub accepts their metadata, and their
examples run.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from checkpoint_tools import rehash
from ddpm_lib import GaussianDiffusion, Shapes, Unet, load_run
from ddpm_lib.cli import main
from ddpm_lib.core.hub.markdown import code, plain, table
from ddpm_lib.process.model_card import simple_card
from ddpm_lib.runs.checkpoint import list_checkpoints
from ddpm_lib.runs.new_run import write_new_run
from ddpm_lib.runs.publishing.facts import Source
from ddpm_lib.runs.publishing.pushing import Publication, write_publication
from ddpm_lib.runs.synthesis import synthesise_ema
from hub_server import Hub, hub_server
from hub_store import card_problems
from training_helpers import tiny_diffusion, tiny_trainer

OPTIONS = {"max_steps": 4, "save_every": 2, "sample_every": 4, "sample_count": 2}
MORE = {"sample_steps": 2, "val_every": 2, "val_fraction": 0.2}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "mine"
    tiny_trainer(run, tiny_diffusion(num_classes=6), **OPTIONS | MORE).train()
    return run


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        yield hub


def card_of(run: Path, folder: Path, **options: Any) -> ModelCard:
    write_publication(run, folder, Publication(repo_id="tester/mine", **options))
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert card_problems(text) == ([], [])
    return ModelCard(text)


def scored(run: Path, scores: list[dict[str, Any]], number: int = 1, **about: Any) -> Path:
    """Write an evaluation as `ddpm evaluate` does."""
    said = {"step": 4, "weights": "ema 0.5", "notes": [], **about}
    said |= {"reference": {"name": "train", "n": 32}, "train": {"name": "train", "n": 32}}
    said |= {"samples": {"n": 64, "sampler": "ddim", "steps": 20}}
    path = run / "evaluations" / f"eval-{number:04d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"scores": scores, **said}))
    return path


def score(name: str, value: float | None, **more: Any) -> dict[str, Any]:
    blank = {"standard_error": None, "interval": None, "unit": "", "remark": ""}
    return {"name": name, "value": value, **blank, **more}


@pytest.fixture
def evaluations(run: Path):
    yield run
    for path in (run / "evaluations").glob("*"):
        path.unlink()


def test_the_card_says_what_was_recorded(run: Path, tmp_path: Path):
    card = card_of(run, tmp_path / "out", license="mit")
    assert card.data.library_name == "ddpm_lib"
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert "class-conditional-image-generation" in card.data.tags
    state = json.loads((list_checkpoints(run / "checkpoints")[-1] / "state.json").read_text())
    parameters = sum(p.numel() for p in tiny_diffusion(num_classes=6).model.parameters())
    images = state["data"]["images"]
    for said in (
        f"trained on {images:,} images of `Shapes`",
        f"`Unet`, {parameters:,} parameters",
        "6: circle, square, triangle, ring, cross, star",
        f"{images:,} images, 20 % more held out",
        "| Steps | 4 of 4 |",
        f"| Images seen | 24, each {24 / images:.4g} times |",
        "| Batch | 6 |",
        "| Precision | float32 |",
        "EMA of decay 0.5",
        "horizontal flips",
        f"torch {torch.__version__.split('+')[0]}",
        'GaussianDiffusion.from_pretrained("tester/mine")',
        "ddpm train Shapes --config training.yaml",
        "`ema` (ema 0.5) at step 4",
        "![Samples](samples.png)",
        "Samples at step 4, not selected",
        "It makes 8×8 RGB images",
        f"It has seen {images:,} different images, which is few",
        "copies training images was **not measured**; `ddpm evaluate RUN --metrics memorisation`",
        "`mit`, for the weights",
    ):
        assert said in card.content, said
    assert "not recorded" not in card.content
    hardware = state["hardware"]
    assert hardware["device"] == "cpu"
    assert plain(hardware["name"]) in card.content
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    [result] = card.data.eval_results
    assert result.metric_value == row["val_loss"]
    assert result.metric_args == {"step": 4, "standard_error": row["val_loss_error"]}


def test_the_metadata_survive_a_round_trip(evaluations: Path, tmp_path: Path, hub: Hub):
    interval = {"interval": [0.01, 0.03], "standard_error": 0.005, "unit": "MMD²"}
    scored(evaluations, [score("kid_inception2048_train_64", 0.02, **interval)])
    card = card_of(evaluations, tmp_path / "out", license="cc-by-4.0")
    card.validate()
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("kid", 0.02)
    assert result.metric_args["interval_95"] == [0.01, 0.03]
    assert result.metric_args["samples"] == 64
    assert (result.dataset_name, result.dataset_split) == ("Shapes", "train")


def test_scores_are_those_of_the_uploaded_weights(evaluations: Path, tmp_path: Path):
    scored(evaluations, [score("kd_x_train_64", 7.0)], 1, step=2)
    scored(evaluations, [score("kd_x_train_64", 8.0)], 2, weights="model")
    card = card_of(evaluations, tmp_path / "none")
    assert "the newest evaluation of this run is of step 4 or of other weights" in card.content
    assert [result.metric_name for result in card.data.eval_results] == ["val_loss"]

    scored(evaluations, [score("kd_x_train_64", 1.5), score("is_x_64", 2.0)], 3)
    scored(evaluations, [score("kd_x_train_64", 1.25, remark="worse than noise")], 4, notes=["few"])
    scored(evaluations, [score("fid_x", None), score("sfid_x", float("inf"))], 5)
    (evaluations / "evaluations" / "eval-0006.json").write_text("{ broken")
    card = card_of(evaluations, tmp_path / "some")
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == {"kd_x_train_64": 1.25, "is_x_64": 2.0}
    assert "`kd_x_train_64`: worse than noise" in card.content
    assert "- few" in card.content
    assert "Measured on 64 samples by `ddim` in 20 steps" in card.content

    card = card_of(evaluations, tmp_path / "raw", weights=("model",))
    assert [result.metric_value for result in card.data.eval_results] == [8.0]


@pytest.mark.parametrize(("p", "verdict"), [(0.6, "no more than chance"), (1e-4, "**more than")])
def test_copies(evaluations: Path, tmp_path: Path, p: float, verdict: str):
    share = score("copies_pixels_train_64", 0.25, interval=[0.1, 0.5], unit="of samples")
    scored(evaluations, [share, score("copies_pixels_train_64/p", p)])
    text = card_of(evaluations, tmp_path / "out").content.replace("\u00a0", " ")
    assert "25 % (10 % to 50 %) of 64 samples by `pixels`" in text
    assert verdict in text
    assert "not measured" not in text.split("## Limits")[1].split("Over-fitting")[0]


def saved(model: Unet, folder: Path, **state: Any) -> Path:
    diffusion = GaussianDiffusion(model, image_size=8, timesteps=20)
    return write_new_run(
        folder,
        model={"class": "Unet", "config": model.config},
        diffusion=diffusion.config,
        weights=model.state_dict(),
        **state,
    )


SMALL = {"dim": 8, "dim_mults": (1,), "blocks_per_level": 1}
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "classes": {"num_classes": 3},
    "super-resolution": {"low_res_factor": 2},
    "grey": {"channels": 1},
    "self-conditioned": {"self_condition": True},
}


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_example_of_each_kind_of_network_runs(kind: str, tmp_path: Path, hub: Hub):
    torch.manual_seed(0)
    run = saved(Unet(**SMALL | NETWORKS[kind]), tmp_path / "run")
    assert main(["push", str(run), "tester/mine"]) == 0
    card = ModelCard(hub.repo("tester/mine").files()["README.md"].decode())
    task = "image-to-image" if kind == "super-resolution" else "unconditional-image-generation"
    assert card.data.pipeline_tag == task
    assert ("super-resolution" in card.data.tags) == (kind == "super-resolution")
    example = re.search(r"```python\n(.*?)```", card.content, re.DOTALL)[1]
    found: dict[str, Any] = {}
    exec(example.replace("num_steps=50", "num_steps=2"), found)
    shape = re.search(r"float32 \((.*?)\)", example)[1]
    assert ", ".join(map(str, found["images"].shape)) == shape


def test_a_run_made_of_anothers_weights_says_so(tmp_path: Path):
    origin = {"source": "/home/me/secret/model010000.pt", "format": "improved-diffusion"}
    notes = ["schedule assumed: cosine"]
    run = saved(Unet(**SMALL), tmp_path / "run", origin=origin, notes=notes)
    card = card_of(run, tmp_path / "out")
    assert "It began with the weights of `model010000.pt`, improved-diffusion" in card.content
    assert "- schedule assumed: cosine" in card.content
    assert "secret" not in str(card)
    assert card.data.base_model is None
    assert "On how many images it was trained was not recorded" in card.content


def test_weights_of_the_hub_are_the_base_model(tmp_path: Path):
    run = tmp_path / "run"
    model = tiny_diffusion()
    model.save_pretrained(tmp_path / "base")
    tiny_trainer(run, tiny_diffusion(), max_steps=2, init_from=str(tmp_path / "base")).train()
    checkpoint = list_checkpoints(run / "checkpoints")[-1]
    assert card_of(run, tmp_path / "local").data.base_model is None

    state = json.loads((checkpoint / "state.json").read_text())
    state["started_from"]["source"] = "google/ddpm-cifar10-32"
    state["data"]["source"] = "somebody/pictures"
    (checkpoint / "state.json").write_text(json.dumps(state))
    rehash(checkpoint)
    card = card_of(run, tmp_path / "hub")
    assert card.data.base_model == ["google/ddpm-cifar10-32"]
    assert card.data.datasets == ["somebody/pictures"]
    assert "(https://huggingface.co/google/ddpm-cifar10-32)" in card.content


def test_the_data_are_called_as_the_user_says(run: Path, tmp_path: Path):
    card = card_of(run, tmp_path / "linked", data_name="me/pictures")
    assert "[me/pictures](https://huggingface.co/datasets/me/pictures)" in card.content
    assert card.data.datasets == ["me/pictures"]
    assert "ddpm train me/pictures --config" in card.content
    card = card_of(run, tmp_path / "plain", data_name="my own pictures")
    assert "of `my own pictures`" in card.content
    assert card.data.datasets is None
    assert card.data.eval_results[0].dataset_name == "my own pictures"


def test_names_from_outside_are_shown_as_they_are(tmp_path: Path):
    names = ["a|b", "<script>", "`x`", "[link](http://nowhere)", "line\nbreak"]
    run = saved(Unet(**SMALL, num_classes=5), tmp_path / "run", class_names=names)
    text = str(card_of(run, tmp_path / "out").text)
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "](http://nowhere)" not in text.replace("\\](http", "")
    row = next(line for line in text.splitlines() if line.startswith("| Classes"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_signals_have_no_task_of_the_hub_and_no_command(tmp_path: Path):
    run = tmp_path / "run"
    model = Unet(**SMALL, dims=1)
    process = GaussianDiffusion(model, image_size=(8,), timesteps=20).config
    described = {"class": "Unet", "config": model.config}
    write_new_run(run, model=described, diffusion=process, weights=model.state_dict())
    card = card_of(run, tmp_path / "out")
    assert card.data.pipeline_tag is None
    assert "draws 3-channel signals of size 8" in card.content
    assert "ddpm sample" not in card.content


def test_a_network_of_ones_own_has_to_be_imported():
    class Mine(Unet):
        pass

    process = GaussianDiffusion(Mine(**SMALL), image_size=8)
    text = simple_card(process, "tester/mine", "mit")
    assert "# Import first the module that registers Mine." in text
    assert "ddpm sample" not in text


def test_an_average_that_was_made_afterwards(tmp_path: Path):
    options = {"posthoc_ema": (0.05, 0.1), "posthoc_every": 2, "save_every": 2, "max_steps": 6}
    tiny_trainer(tmp_path / "run", **options).train()
    made = synthesise_ema(tmp_path / "run", 0.12, None, None).path
    card = card_of(made, tmp_path / "out")
    loaded = load_run(made)
    assert loaded.weights in card.content.replace("\\", "")
    tensors = GaussianDiffusion.from_pretrained(tmp_path / "out").model.state_dict()
    expected = loaded.diffusion.model.state_dict()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_card_without_a_run(tmp_path: Path):
    text = simple_card(tiny_diffusion(), "tester/mine", None, "next")
    assert card_problems(text) == ([], [])
    card = ModelCard(text)
    assert card.data.library_name == "ddpm_lib"
    assert 'from_pretrained("tester/mine", revision="next")' in text
    assert "No licence was stated" in text
    assert card.data.license is None


@pytest.mark.parametrize(
    ("text", "name", "hub_id"),
    [
        ("/home/me/secret/shapes.zip", "shapes.zip", None),
        ("/home/me/set/*", "set", None),
        (r"C:\Users\me\pictures", "pictures", None),
        ("me/shapes", "me/shapes", "me/shapes"),
        ("shapes", "shapes", None),
        ("a/b/c", "c", None),
    ],
)
def test_a_source_is_named_without_its_place(text: str, name: str, hub_id: str | None):
    found = Source.of(text)
    assert (found.name, found.hub_id) == (name, hub_id)


def test_markdown():
    assert plain("*a* _b_ #c") == r"\*a\* \_b\_ \#c"
    assert code("a|b") == r"`a\|b`"
    assert table(("a", "b"), []) == "| a | b |\n|---|---|"


def test_the_settings_train_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_publication(run, tmp_path / "out", Publication(repo_id="tester/mine"))
    monkeypatch.chdir(tmp_path)
    shapes = Shapes(size=8, n=40)
    from ddpm_lib.images import save_image

    for i in range(40):
        save_image(shapes[i]["image"], tmp_path / "images" / f"{i % 6}" / f"{i}.png")
    other = ["--val-data", str(tmp_path / "secret" / "kept")]
    for i in range(6):
        save_image(shapes[i]["image"], tmp_path / "secret" / "kept" / f"{i}" / "x.png")
    args = [
        "images",
        *other,
        "--config",
        "out/training.yaml",
        "--output-dir",
        "again",
        "--max-steps",
        "2",
    ]
    assert main(["train", *args]) == 0
    card = card_of(tmp_path / "again", tmp_path / "third").content
    assert "held out: `kept`" in card
    assert "ddpm train path/to/images --val-data path/to/kept --config training.yaml" in card
    assert "secret" not in card
