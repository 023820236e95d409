"""A model of each family of backbones: tested, exported, predicted, zero-shot and planned alike."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.config.schema import ClassText, Config, Device, Head, ImageTuning, ModelConfig
from dfer_dist.data.loading.sampler import all_clips
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.evaluation.evaluate import evaluate_checkpoint, predict_here
from dfer_dist.evaluation.zero_shot import zero_shot
from dfer_dist.inference.export import export
from dfer_dist.inference.exported import BACKBONE, CARD, INFO, load
from dfer_dist.models.backbone import describe_backbone
from dfer_dist.models.build import build_model
from dfer_dist.models.towers.open_clip_models import build_clip, clip_config
from dfer_dist.models.tuning import param_groups
from dfer_dist.planning.step_costs import count_step
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import sha256_file
from tests.helpers.cli import invoke
from tests.helpers.data.videos import encode
from tests.helpers.models.small_backbones import fill_hub_cache, write_small, write_standalone
from tests.helpers.training.commands import dfer, one_epoch, predictions

TIMM = "timm:test_vit"
# by family, with whether the text tower has files of the Hub
FAMILIES = {
    "ViT-B-32-quickgelu": False,
    "ViT-L-14-CLIPA": True,
    "ViT-H-14-worldwide": True,
    "coca_ViT-B-32": False,
    "EVA02-B-16": False,
    "MobileCLIP-B": False,
    "ViT-B-16-SigLIP2": True,
    "PE-Core-B-16": False,
    "roberta-ViT-B-32": True,
}
# the others take a test's time each, by `make test-engine`
IN_EVERY_RUN = {"coca_ViT-B-32", "ViT-B-16-SigLIP2", "PE-Core-B-16", "roberta-ViT-B-32"}
SCALE, BIAS = 3.25, -7.5
MEAN = [0.5, 0.4, 0.3]


def marked(name: str) -> Any:
    marks = [] if name in IN_EVERY_RUN else [pytest.mark.engine_full]
    return pytest.param(name, marks=marks)


@dataclass(frozen=True)
class Case:
    """A checkpoint of a random model with LoRA, as if trained for fold 2, and its test."""

    folder: Path
    config: Config
    logits: list[list[float]]


def make_weights(path: str, folder: Path) -> str:
    """Write weights of a model of open_clip with a scale and a bias of their own."""
    config = clip_config(path)
    clip = build_clip(config, describe_backbone(path).image_size)
    with torch.no_grad():
        # some begin with zeros, so that features do not depend on the frames
        for p in clip.parameters():
            p += 0.02 * torch.randn_like(p)
        clip.logit_scale.fill_(SCALE)
        if clip.logit_bias is not None:
            clip.logit_bias.fill_(BIAS)
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "w.safetensors")
    return str(folder / "w.safetensors")


def settings(backbone: str, index: Index, **model: object) -> Config:
    config = Config(
        model=ModelConfig(
            backbone=backbone,
            pretrained="none",
            text=ClassText.names,
            context_tokens=2,
            image=ImageTuning.lora,
            temporal_layers=1,
            normalize=True,
            **model,  # type: ignore[arg-type]
        )
    )
    config.data.shards, config.data.num_frames, config.data.workers = str(index.root), 2, 0
    config.data.image_size = describe_backbone(backbone).image_size
    config.train.device, config.eval.batch = Device.cpu, 6
    return config


def make_case(config: Config, index: Index, folder: Path) -> Case:
    torch.manual_seed(config.train.seed)
    size = config.data.image_size or 0
    model = build_model(config.model, index.classes, config.data.num_frames, size)
    trained = {name: p for group in param_groups(model).values() for name, p in group}
    assert any("lora" in name for name in trained)
    state = {
        "step": 7,
        "skipped_steps": 0,
        "fold": 2,
        "classes": list(index.classes),
        "dataset": index.name,
        "index_hash": index.hash,
        "frozen_sha256": checkpoint.frozen_checksum(model, trained),
    }
    weights = {name: (p + 0.1 * torch.randn_like(p)).detach() for name, p in trained.items()}
    checkpoint.write(folder, weights, {}, config, state)
    evaluate_checkpoint(folder, None, [], folder.parent / "eval.parquet")
    return Case(folder, config, pq.read_table(folder.parent / "eval.parquet")["logits"].to_pylist())


def check_exported(case: Case, index: Index, out: Path) -> None:
    """Check that an exported model gives the logits of the test, to the bit."""
    model = load(out, device="cpu")
    clips = all_clips(index, index.test_shards(2))
    table = predict_here(model.model, case.config, index, clips)
    assert table.logits.tolist() == case.logits
    assert np.std(table.logits, axis=0).min() > 0, "they depend on the clip"
    frames = np.random.default_rng(0).integers(0, 256, (1, 4, 48, 40, 3), dtype=np.uint8)
    assert np.isfinite(model.probabilities(frames)).all()


def use_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", [*map(marked, FAMILIES)])
def test_exported_model_needs_nothing_of_this_machine(
    name: str, tiny_shards: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_hub_cache(tmp_path / "hub", monkeypatch)
    sizes = Path(write_small(name, tmp_path, monkeypatch))
    sizes.write_text(json.dumps(json.loads(sizes.read_text()) | {"preprocess_cfg": {"mean": MEAN}}))
    config = settings(str(sizes), tiny_shards, temperature=None)
    config.model.pretrained = make_weights(str(sizes), tmp_path)
    case = make_case(config, tiny_shards, tmp_path / "c")
    result = zero_shot(case.folder, None, [], None)
    assert result["n"] == 12 and result["backbone"] == sizes.name
    counted = count_step(config, SEVEN, fused_attention=True)
    assert counted.groups["lora"] > 0 and counted.live(2).max() > counted.live(1).max()

    out = tmp_path / "out"
    info = export(case.folder, out, [])
    sizes.unlink()
    (tmp_path / "w.safetensors").unlink()
    use_empty_cache(tmp_path, monkeypatch)
    check_exported(case, tiny_shards, out)
    stored = json.loads((out / BACKBONE).read_text())
    assert stored["init_logit_scale"] == pytest.approx(SCALE)
    assert stored["preprocess_cfg"]["mean"] == MEAN
    hub = [file for file in info.files if "/" in file]
    assert bool(hub) == FAMILIES[name]
    assert ("\ntransformers==" in (out / "requirements.txt").read_text()) == FAMILIES[name]
    for file, about in info.files.items():
        assert sha256_file(out / file) == about["sha256"]
    assert str(tmp_path) not in (out / BACKBONE).read_text() + (out / INFO).read_text()
    for file in hub:
        (out / file).write_text("changed")
        with pytest.raises(UserError, match="differs from its sha256"):
            load(out)


@pytest.mark.parametrize("name", [TIMM, "ViT-B-16-SigLIP2", "roberta-ViT-B-32"])
def test_linear_head_needs_no_text_tower(
    name: str, tiny_shards: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = name
    if name != TIMM:
        fill_hub_cache(tmp_path / "hub", monkeypatch)
        path = write_small(name, tmp_path, monkeypatch)
    config = settings(path, tiny_shards, head=Head.linear)
    if name != TIMM:
        config.model.pretrained = make_weights(path, tmp_path)
    case = make_case(config, tiny_shards, tmp_path / "c")
    with pytest.raises(UserError, match=r"model\.head=linear .* reads none: test it without"):
        zero_shot(case.folder, None, [], None)
    assert count_step(config, SEVEN, fused_attention=False).groups["head"] > 0

    info = export(case.folder, tmp_path / "out", [])
    use_empty_cache(tmp_path, monkeypatch)
    check_exported(case, tiny_shards, tmp_path / "out")
    assert info.texts == {} and not any("/" in file for file in info.files)
    card = (tmp_path / "out" / CARD).read_text()
    assert "and a linear classifier" in card and "## Class texts" not in card
    assert "In the order of the logits: happiness, sadness" in card
    assert "linear layer, its weight begins with zeros" in card
    assert "learned prompts" not in card and "learned tokens" not in card


def test_named_model_has_a_file_only_where_its_name_says_too_little(
    tiny_shards: Index, tmp_path: Path
) -> None:
    for temperature in (0.07, None):
        config = settings("tiny", tiny_shards, temperature=temperature)
        config.model.pretrained = "demo"
        folder = tmp_path / str(temperature)
        case = make_case(config, tiny_shards, folder / "c")
        export(case.folder, folder / "out", [])
        check_exported(case, tiny_shards, folder / "out")
        assert (folder / "out" / BACKBONE).exists() == (temperature is None)
    scale = json.loads((tmp_path / "None" / "out" / BACKBONE).read_text())["init_logit_scale"]
    assert scale != pytest.approx(math.log(1 / 0.07)), "that of the weights"


def test_zero_shot_of_a_linear_head_says_what_to_set(tiny_shards: Index) -> None:
    given = ["model.head=linear", f"data.shards={tiny_shards.root}"]
    with pytest.raises(UserError, match=r"tiny reads none: set model\.head=text and a backbone"):
        zero_shot(Path("demo"), None, given, None)


@pytest.mark.parametrize(
    "name",
    [
        TIMM,
        "ViT-B-16-SigLIP2",
        pytest.param("coca_ViT-B-32", marks=pytest.mark.engine_full),
        pytest.param("roberta-ViT-B-32", marks=pytest.mark.engine_full),
    ],
)
def test_trains_saves_and_predicts(name: str, tiny_shards: Index, tmp_path: Path) -> None:
    """By the commands that a user gives, in processes of their own."""
    backbone, more = name, ["model.head=linear"]
    if name != TIMM:
        backbone, more = write_standalone(name, tmp_path), ["model.temperature=null"]
    more += [f"model.backbone={backbone}", "model.pretrained=none", "model.image=lora"]
    more += ["model.text=names", "data.image_size=null", "data.num_frames=2"]
    given = one_epoch(tiny_shards, tmp_path, *more)
    dfer("train", "demo", "--fold", "2", "--nproc", "1", "--name", "run", *given)
    fold = RunDir(tmp_path / "run").fold(2)
    lines = [json.loads(line) for line in fold.metrics.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) >= 2 and np.isfinite(losses).all()

    latest, table = fold.checkpoints / "LATEST", tmp_path / "eval.parquet"
    evaluate_checkpoint(latest, None, [], table)
    assert predictions(table)[0] == predictions(fold.predictions)[0]
    np.testing.assert_array_equal(predictions(table)[1], predictions(fold.predictions)[1])
    export(latest, tmp_path / "out", [])
    model = load(tmp_path / "out", device="cpu")
    again = predict_here(
        model.model, model.config, tiny_shards, all_clips(tiny_shards, tiny_shards.test_shards(2))
    )
    np.testing.assert_array_equal(again.logits, predictions(table)[1])
    video = tmp_path / "a.mp4"
    encode(video, np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8))
    done = invoke("predict", "out", video, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "predictions" / "a.mp4.csv").is_file()
