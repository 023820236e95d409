"""Weights, tokenizers and settings of the Hugging Face Hub: what is fetched, found and said."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import save_file

from dfer_dist.config.schema import Config, Head, ModelConfig
from dfer_dist.models import backbone as backbones
from dfer_dist.models.backbone import describe_backbone, fetch_weights, load_backbone
from dfer_dist.models.flops import build_meta_model
from dfer_dist.models.towers import hub, timm_models
from dfer_dist.utils.errors import UserError
from launch.doctor import machine
from tests.helpers.models.small_backbones import fill_hub_cache, write_tokenizer


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("name", "repository"),
    [("ViT-B-16-SigLIP2", "timm/ViT-B-16-SigLIP2"), ("roberta-ViT-B-32", "roberta-base")],
)
def test_missing_tokenizer_names_the_command(name: str, repository: str, empty_cache: Path) -> None:
    said = f"'{repository}' of the Hugging Face Hub.* run `dfer fetch-weights {name} none`"
    with pytest.raises(UserError, match=said):
        load_backbone(name, "none", 224)
    config = Config(model=ModelConfig(backbone=name, pretrained="none"))
    with pytest.raises(UserError, match=said):
        machine._weights(config)
    config.model.head = Head.linear
    assert machine._weights(config).text.startswith("none")
    with pytest.raises(UserError, match=said):
        backbones.load_tokenizer(name)


def test_linear_head_needs_no_files_of_the_text_tower(empty_cache: Path) -> None:
    with torch.device("meta"):
        for name in ("ViT-B-16-SigLIP2", "roberta-ViT-B-32"):
            assert load_backbone(name, "none", 224, with_text=False).text is None


def test_fetches_all_that_a_text_tower_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def snapshot(name: str, **_: object) -> str:
        fetched.append(name)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    monkeypatch.setattr("open_clip.download_pretrained", lambda cfg: fetched.append(cfg["hf_hub"]))
    monkeypatch.setattr(backbones, "Path", lambda path: path)
    fetch_weights("ViT-B-16-SigLIP2", "webli")
    assert fetched == ["timm/ViT-B-16-SigLIP2", "timm/ViT-B-16-SigLIP2/"]
    fetched.clear()
    # its weights are not published
    assert fetch_weights("mt5-base-ViT-B-32", "none") == tmp_path
    assert fetched == ["google/mt5-base"]
    with pytest.raises(UserError, match="'none' is neither published weights"):
        fetch_weights("ViT-B-32", "none")


def test_without_a_network_it_says_so_in_one_line(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("cannot reach\nthe Hub")

    monkeypatch.setattr(timm_models, "hf_hub_download", no_network)
    monkeypatch.setattr(hub, "snapshot_download", no_network)
    for name, tag in (
        ("timm:vit_small_patch16_dinov3", "lvd1689m"),
        ("ViT-B-16-SigLIP2", "webli"),
    ):
        with pytest.raises(UserError, match=f"{name} {tag} cannot be downloaded: cannot reach the"):
            fetch_weights(name, tag)
    with pytest.raises(
        UserError, match=r"set model\.pretrained to one of lvd1689m, a weights file or none"
    ):
        fetch_weights("timm:vit_small_patch16_dinov3", "openai")


def test_fetches_the_file_that_a_repository_of_timm_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        if file == "model.safetensors":
            raise RemoteEntryNotFoundError("no such file", response=mock.MagicMock())
        return str(tmp_path / file)

    monkeypatch.setattr(timm_models, "hf_hub_download", download)
    found = fetch_weights("timm:test_vit", "r160_in1k")
    assert found == tmp_path / "pytorch_model.bin"
    assert asked == [("timm/test_vit.r160_in1k", f) for f in ("model.safetensors", found.name)]


def test_finds_fetched_weights_of_timm(empty_cache: Path) -> None:
    """Also those that were first published as ``.npz``, which timm reads in another manner."""
    name, tag = "vit_tiny_patch16_384", "augreg_in21k_ft_in1k"
    assert timm.get_pretrained_cfg(f"{name}.{tag}").custom_load
    with pytest.raises(UserError, match=f"run `dfer fetch-weights timm:{name} {tag}`"):
        load_backbone(f"timm:{name}", tag, 32)
    torch.manual_seed(0)
    model = timm.create_model(name)
    repository = empty_cache / f"models--timm--{name}.{tag}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(model.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    tower = load_backbone(f"timm:{name}", tag, 384).image.eval()
    pixels = torch.randn(1, 3, 384, 384)
    model.reset_classifier(0)
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels), model.eval()(pixels), rtol=1e-4, atol=1e-5)


def test_pixels_are_those_of_the_tag() -> None:
    """Not of the tag that a library names first."""
    size = describe_backbone("timm:vit_base_patch16_224", "augreg_in21k_ft_in1k")
    assert size.mean == (0.5, 0.5, 0.5)
    mae = describe_backbone("timm:vit_base_patch16_224", "mae")
    assert mae.mean == (0.485, 0.456, 0.406)
    for tag, info in (("augreg_in21k_ft_in1k", size), ("mae", mae)):
        config = Config(model=ModelConfig(backbone="timm:vit_base_patch16_224", pretrained=tag))
        config.model.head, config.model.normalize = Head.linear, True
        # an exported model is built so
        model = build_meta_model(config, ["happiness", "sadness"])
        assert model.pixels == (info.mean, info.std)


def test_planning_needs_no_tokenizer(empty_cache: Path) -> None:
    config = Config(model=ModelConfig(backbone="ViT-B-16-SigLIP2"))
    assert build_meta_model(config, ["happiness", "sadness"]).text is not None
    config.model.backbone = "roberta-ViT-B-32"
    with pytest.raises(UserError, match="run `dfer fetch-weights roberta-ViT-B-32 none`"):
        build_meta_model(config, ["happiness", "sadness"])


def test_small_files_leave_weights_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "onnx.json").mkdir()
    names = {file.name for file in hub.small_files(tmp_path)}
    assert names == {"tokenizer.json", "tokenizer_config.json"}
    fill_hub_cache(tmp_path / "cache", monkeypatch)
    assert "config.json" in {f.name for f in hub.small_files(hub.find_folder("roberta-base"))}
