"""The linear head, and a text tower's own temperature."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import (
    ClassText,
    Head,
    HeadInit,
    ImageTuning,
    ModelConfig,
    Output,
    TextPolarity,
)
from dfer_dist.models.build import build_model
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.towers.open_clip_models import TINY, build_clip
from dfer_dist.models.tuning import param_groups
from dfer_dist.utils.errors import UserError

CLASSES = ("happiness", "anger", "fear")
CLIPS = torch.randint(0, 256, (4, 2, 3, 64, 64), dtype=torch.uint8)


def tiny(classes: tuple[str, ...] = CLASSES, **settings: object) -> DFERCLIP:
    torch.manual_seed(0)
    cfg = ModelConfig(backbone="tiny", pretrained="demo", text=ClassText.names, **settings)  # type: ignore[arg-type]
    return build_model(cfg, classes, 2, 64)


def test_has_no_text_tower_and_a_group_of_its_own() -> None:
    model = tiny(head=Head.linear, image=ImageTuning.none)
    assert not [name for name in model.state_dict() if name.startswith(("text", "prompt"))]
    assert [name for name, _ in param_groups(model)["head"]] == ["head.weight", "head.bias"]
    assert list(param_groups(model)) == ["temporal", "head"]
    assert model.text_features() is None


def test_zeros_call_all_classes_equally_likely() -> None:
    model = tiny(head=Head.linear)
    logits = model(CLIPS)
    assert torch.equal(logits, torch.zeros(4, 3))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    assert model.head.weight.grad.abs().min() > 0


def test_logits_are_a_linear_layer_on_the_feature_of_mean_square_1() -> None:
    model = tiny(head=Head.linear, head_init=HeadInit.normal)
    assert 0.01 < model.head.weight.std() < 0.03
    video = model.outputs(CLIPS, tokens=None)
    feature = model.video_features(CLIPS)
    scaled = feature / feature.square().mean(1, keepdim=True).sqrt()
    want = scaled @ model.head.weight.t() + model.head.bias
    torch.testing.assert_close(video.positive, want, rtol=1e-5, atol=1e-6)


def test_text_init_starts_from_the_text_tower() -> None:
    """As the model with a text tower and no context classifies."""
    own = tiny(head=Head.linear, head_init=HeadInit.text, context_tokens=0, temperature=0.07)
    texts = tiny(context_tokens=0, temperature=0.07)
    own.temporal.load_state_dict(texts.temporal.state_dict())
    torch.testing.assert_close(own(CLIPS), texts(CLIPS), rtol=1e-4, atol=1e-4)
    assert own(CLIPS).std() > 0.01 and own.text is None


@pytest.mark.parametrize("polarity", list(TextPolarity))
def test_sigmoid_outputs_are_the_single_classes_with_centered_cosines(
    polarity: TextPolarity,
) -> None:
    classes = (*CLASSES, "anger+fear")
    texts = {"text_polarity": polarity, "temperature": 0.07}
    model = tiny(classes, output=Output.sigmoid, **texts)
    plain = tiny(CLASSES, **texts)
    plain.load_state_dict(model.state_dict())
    logits, cosines = model(CLIPS), plain(CLIPS)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(logits, cosines - cosines.mean(1, keepdim=True), atol=1e-4, rtol=0)
    # a softmax does not see the difference
    torch.testing.assert_close(logits.softmax(1), cosines.softmax(1))
    assert tiny(classes).text_features().shape[0] == 4  # type: ignore[union-attr]


def test_linear_head_of_sigmoid_outputs_starts_with_centered_texts() -> None:
    texts = {"head": Head.linear, "head_init": HeadInit.text, "context_tokens": 0}
    logits = tiny((*CLASSES, "anger+fear"), output=Output.sigmoid, **texts)(CLIPS)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(logits.mean(1), torch.zeros(4), atol=1e-3, rtol=0)


def test_sigmoid_outputs_need_labels() -> None:
    overrides = ["train.objective=descriptions", "model.output=sigmoid", "model.context_tokens=0"]
    with pytest.raises(UserError, match=r"uses no label, and model\.output needs") as caught:
        load_config("demo", overrides)
    assert "\n" not in str(caught.value)


def test_null_temperature_takes_scale_and_bias_of_the_weights(tmp_path: Path) -> None:
    sizes = TINY | {"custom_text": True, "init_logit_bias": -10.0}
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(sizes))
    clip = build_clip(sizes, 64).eval()
    clip.logit_scale.data.fill_(math.log(30.0))
    clip.logit_bias.data.fill_(-7.0)
    save_file(clip.state_dict(), tmp_path / "w.safetensors")
    cfg = ModelConfig(
        backbone=str(path), pretrained=str(tmp_path / "w.safetensors"), text=ClassText.names
    )
    cfg.temperature, cfg.context_tokens = None, 0
    model = build_model(cfg, CLASSES, 2, 64)
    cosines = (model(CLIPS) + 7) / 30
    cfg.temperature = 1.0
    torch.manual_seed(0)
    plain = build_model(cfg, CLASSES, 2, 64)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(cosines, plain(CLIPS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.backbone=timm:vit_tiny_patch16_224"], "set model.head=linear"),
        (
            ["model.backbone=timm:x", "model.head=linear", "model.head_init=text"],
            "which model.head_init=text needs",
        ),
        (["model.head=linear", "model.text_polarity=both"], "model.text_polarity=both needs"),
        (["model.head=linear", "model.text_tower=lora"], "model.text_tower=lora needs"),
        (["model.head=linear", "train.objective=both"], "train.objective=both needs"),
        (["model.temperature=null", "train.objective=both"], "give the temperature of its loss"),
    ],
)
def test_settings_of_texts_are_refused_without_them(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_config("demo", overrides)
