"""Checkpoints of the authors, converted to ours and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.config.load import load_config, read_config
from dfer_dist.config.schema import Config, ModelConfig, TokenPosition
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.evaluation.evaluate import evaluate_checkpoint, load_model
from dfer_dist.inference.convert import (
    _open_clip_name,
    from_official,
    to_official,
    write_experiment,
)
from dfer_dist.inference.official import read_official, read_sizes
from dfer_dist.models.class_texts import DESCRIPTIONS
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.utils.errors import UserError
from tests.helpers.models.golden import GOLDEN, assert_equal, golden
from tests.helpers.models.official_checkpoints import OTHERS, SIZES, dfer, ours


@pytest.fixture(scope="session", params=golden.args[1])
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A recorded checkpoint, and the folder made of it; read only."""
    out = tmp_path_factory.mktemp("converted") / "folder"
    recorded = json.loads((GOLDEN / f"{request.param}.json").read_text())
    from_official(
        GOLDEN / f"{request.param}_init.pth", out, TokenPosition[recorded["class_token_position"]]
    )
    return request.param, out


def rebuild(folder: Path, *overrides: str) -> tuple[DFERCLIP, Config]:
    """As ``dfer eval`` does it."""
    saved = checkpoint.read(folder, weights_only=True)
    config = load_config(str(folder / checkpoint.CONFIG), overrides)
    return load_model(saved, config, tuple(saved.state["classes"])), config


@torch.no_grad()
def test_the_folder_gives_the_recorded_logits(converted: tuple[str, Path]) -> None:
    case, folder = converted
    model, config = rebuild(folder)
    data = np.load(GOLDEN / f"{case}_trajectory.npz")
    assert config.data.num_frames == data["frames"].shape[2]
    assert config.data.image_size == data["frames"].shape[-1]
    assert_equal(model(torch.from_numpy(data["frames"][0])), data["logits"][0], "logits")


def test_settings_and_sentences_are_those_of_the_json(converted: tuple[str, Path]) -> None:
    case, folder = converted
    recorded, model = (
        json.loads((GOLDEN / f"{case}.json").read_text()),
        read_config(folder / checkpoint.CONFIG).model,
    )
    assert list((model.sentences or {}).values()) == [[text] for text in recorded["class_text"]]
    assert model.context_tokens == recorded["contexts_number"]
    assert model.class_specific == recorded["class_specific_contexts"]
    assert model.temporal_layers == recorded["temporal_layers"]
    sizes, clip = json.loads(Path(model.backbone).read_text()), recorded["clip"]
    for part in ("vision", "text"):
        for what in ("width", "layers"):
            assert sizes[f"{part}_cfg"][what] == clip[f"{part}_{what}"]
    assert sizes["text_cfg"]["heads"] == clip["text_heads"]
    assert sizes["vision_cfg"]["width"] // 64 == clip["vision_heads"]
    assert sizes["vision_cfg"]["patch_size"] == clip["patch_size"]
    assert sizes["text_cfg"]["context_length"] == clip["context_length"]


def test_experiment_has_the_sentences_and_is_no_other_recipe(
    converted: tuple[str, Path], tmp_path: Path
) -> None:
    _, folder = converted
    config, out = read_config(folder / checkpoint.CONFIG), tmp_path / "authors.yaml"
    write_experiment(config, out, "a.pth")
    made = load_config(str(out), ["data.shards=x"])
    assert list((made.model.sentences or {}).items()) == list(
        (config.model.sentences or {}).items()
    )
    made.model.sentences = None
    made.data.shards = Config().data.shards
    assert made == Config()
    with pytest.raises(UserError, match="give a new file"):
        write_experiment(config, out, "a.pth")
    with pytest.raises(UserError, match=r"ends with \.yaml"):
        write_experiment(config, tmp_path / "authors", "a.pth")


def test_there_and_back_every_tensor_is_equal(converted: tuple[str, Path], tmp_path: Path) -> None:
    case, folder = converted
    to_official(folder, tmp_path / "back.pth", [])
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert set(back) == {"epoch", "state_dict", "best_acc", "optimizer", "recorder"}
    first = read_official(GOLDEN / f"{case}_init.pth")
    assert back["state_dict"].keys() == {f"module.{name}" for name in first}
    for name, tensor in first.items():
        assert torch.equal(back["state_dict"][f"module.{name}"], tensor), name
        assert back["state_dict"][f"module.{name}"].dtype == tensor.dtype, name


def test_eval_takes_a_moved_folder_and_shards(
    converted: tuple[str, Path], tiny_shards: Index, tmp_path: Path
) -> None:
    _, folder = converted
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    overrides = [f"data.shards={tiny_shards.root}", "data.workers=0"]
    assert "12 clips: UAR" in dfer(
        "eval", moved, "--fold", 2, "--out", tmp_path / "p.parquet", *overrides
    )
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.num_rows == 12
    assert np.isfinite(np.stack(table["logits"].to_numpy())).all()


def test_eval_asks_for_the_fold_and_matches_classes_by_name(
    converted: tuple[str, Path], tiny_shards: Index, tmp_path: Path
) -> None:
    _, folder = converted
    overrides = [f"data.shards={tiny_shards.root}", "data.workers=0"]
    with pytest.raises(UserError, match="--fold"):
        evaluate_checkpoint(folder, None, overrides, None)
    saved, other = checkpoint.read(folder), tmp_path / "other"
    state = {**saved.state, "classes": saved.state["classes"][::-1]}
    checkpoint.write(other, saved.model, saved.optimizer, saved.config, state, saved.frozen)
    scores = evaluate_checkpoint(other, 1, overrides, None).scores
    assert scores.classes == state["classes"]
    counts = np.sum([tiny_shards.shards[i].histogram for i in tiny_shards.test_shards(1)], axis=0)
    assert scores.support == dict(zip(tiny_shards.classes, counts.tolist(), strict=True))


@torch.no_grad()
@pytest.mark.parametrize(("settings", "classes"), OTHERS, ids=["front", "middle-11", "shared"])
def test_other_settings_are_recovered_from_the_tensors(
    settings: ModelConfig, classes: tuple[str, ...], tmp_path: Path
) -> None:
    model = ours(tmp_path / "ours", settings, classes)
    to_official(tmp_path / "ours", tmp_path / "theirs.pth", [])
    config = from_official(tmp_path / "theirs.pth", tmp_path / "again", settings.token_position)
    want = replace(
        settings,
        backbone="backbone.json",
        pretrained="none",
        sentences={name: [DESCRIPTIONS[name]] for name in classes},
    )
    assert config.model == want
    assert json.loads((tmp_path / "again" / "backbone.json").read_text()) == SIZES | {
        "vision_cfg": {**SIZES["vision_cfg"], "image_size": 48}  # type: ignore[dict-item]
    }
    again, config = rebuild(tmp_path / "again")
    frames = torch.randint(0, 256, (2, 4, 3, 48, 48), dtype=torch.uint8)
    assert torch.equal(again(frames), model(frames))
    wrong = next(p for p in TokenPosition if p is not settings.token_position)
    moved, _ = rebuild(tmp_path / "again", f"model.token_position={wrong.name}")
    assert not torch.allclose(moved(frames), model(frames), rtol=1e-3)
    assert torch.load(tmp_path / "theirs.pth", weights_only=True)["epoch"] == 3


@pytest.mark.parametrize(
    "name",
    ["ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu", "ViT-L-14-336-quickgelu"],
)
def test_models_of_openai_are_known_by_their_sizes(name: str) -> None:
    with torch.device("meta"):
        clip = open_clip.CLIP(**open_clip.get_model_config(name)).state_dict()
    state = {f"clip_model_.{n}": w for n, w in clip.items()}
    state |= {n.replace("clip_model_.visual", "image_encoder"): w for n, w in state.items()}
    state |= {n.replace("clip_model_", "text_encoder"): w for n, w in state.items()}
    state["prompt_learner.ctx"] = torch.empty(7, 8, 512)
    state["temporal_net.pos_embedding"] = torch.empty(1, 17, 512)
    state["temporal_net.temporal_transformer.layers.0.0.fn.fn.to_out.0.weight"] = torch.empty(
        512, 512
    )
    state["temporal_net.temporal_transformer.layers.0.1.fn.fn.net.0.weight"] = torch.empty(
        1024, 512
    )
    sizes, settings, frames = read_sizes(state)
    assert _open_clip_name(sizes) == name
    assert settings == ModelConfig(pretrained="none")  # the published recipe is the default
    assert frames == 16


def test_both_verbs_from_the_command_line(tmp_path: Path) -> None:
    ours(tmp_path / "ours", ModelConfig(token_position=TokenPosition.front), SEVEN)
    dfer("convert", "to-official", tmp_path / "ours", tmp_path / "theirs.pth")
    said = dfer(
        "convert",
        "official",
        tmp_path / "theirs.pth",
        tmp_path / "again",
        "--token-position",
        "front",
    )
    assert DESCRIPTIONS["fear"] in said
    assert (
        read_config(tmp_path / "again" / checkpoint.CONFIG).model.token_position
        is TokenPosition.front
    )
