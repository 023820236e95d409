"""The model card of an exported model."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from dfer_dist.config.schema import Config, Head, ModelConfig
from dfer_dist.inference.exported import ModelInfo
from dfer_dist.inference.model_card import OTHER, license_text, model_card


def made_card(
    license_id: str = OTHER,
    result: dict[str, Any] | None = None,
    config: Config | None = None,
    **about: Any,
) -> str:
    """The card of a model of two classes, of which the test fold has one."""
    scores = {"uar": 75.0, "war": 75.0, "recall": {"Happy": 75.0, "Sad": None}, "n": 8}
    counts = {"support": {"Happy": 8, "Sad": 0}, "confusion": [[6, 2], [0, 0]], "absent": ["Sad"]}
    fold = {"dataset": "mine", "fold": 1, "classes": ["Happy", "Sad"], "selection": "last"}
    origin = {"epoch": 3, "step": 7, "config_hash": "c", "index_hash": "i", "version": 1}
    return model_card(
        made_info(result=fold | origin | scores | counts | (result or {}), **about),
        config or Config(),
        "",
        license_id,
    )


def made_info(**about: Any) -> ModelInfo:
    given: dict[str, Any] = {
        "classes": ["Happy", "Sad"],
        "texts": {"Happy": ["a smile"], "Sad": ["a frown"]},
        "parameters": 1,
        "backbone": "ViT-B-32",
        "pretrained": "openai",
        "config_hash": "c",
        "objective": "labels",
        "selection": "last",
        "precision": "bf16",
        "software": {"dfer_dist": "1"},
        "code_hash": "d",
    }
    return ModelInfo(**given | about)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"left_out": ["Happy/1", "Sad/2"]}, "**2 of 10 test clips left out when the data was "),
        ({"left_out": []}, ""),
        # by an earlier version
        ({}, ""),
    ],
)
def test_card_names_the_test_clips_that_were_lost_when_packing(
    stored: dict[str, list[str]], said: str
) -> None:
    text = made_card(result=stored)
    assert said in text and ("left out" in text) == bool(said)
    assert all(clip in text for clip in stored.get("left_out", []))


def test_linear_head_is_not_called_clip() -> None:
    backbone = "timm:vit_base_patch16_dinov3"
    config = Config(model=ModelConfig(head=Head.linear, backbone=backbone))
    card = made_card(config=config, texts={}, backbone=backbone)
    data = ModelCard(card).data
    assert "clip" not in data.tags and data.model_name == backbone
    assert "In the order of the logits: Happy, Sad." in card and "Class text" not in card
    assert "temporal transformer, linear classifier" in card and "classifier 0.001;" in card
    clip = ModelCard(made_card()).data
    assert "clip" in clip.tags and clip.model_name == "DFER-CLIP"


def test_class_without_clips_has_no_recall() -> None:
    card = made_card()
    assert "| Happy | 8 | 75.00 | 40.93 to 92.85 |" in card
    assert "| Sad | 0 | absent |  |" in card
    assert "| always Happy | 100.00 |  | 100.00 |  |" in card
    assert "| Happy | 6 | 2 |" in card


def test_optimistic_selection_is_stated_next_to_the_scores() -> None:
    card = made_card(result={"selection": "best_test"})
    assert "predicted once by the epoch that was best **on the test fold itself**" in card


def test_weights_have_other_terms_than_the_code() -> None:
    data = ModelCard(made_card()).data
    assert (data.license, data.license_name) == ("other", "terms-of-the-training-data")
    assert "No license was chosen for the weights" in made_card(dataset="mine")
    assert "from the data set mine, whose terms" in made_card(dataset="mine")
    chosen = made_card("cc-by-nc-4.0")
    assert ModelCard(chosen).data.to_dict().keys() & {"license_name", "license_link"} == set()
    assert "are published under `cc-by-nc-4.0`" in chosen
    text = license_text(made_info(), "cc-by-nc-4.0")
    assert text.index("cc-by-nc-4.0") < text.index("MIT License")


def test_training_of_converted_weights_is_not_made_up() -> None:
    assert "| Optimiser |" in made_card()
    file = {"file": "theirs.pth", "sha256": "0"}
    assert "| Optimiser |" not in made_card(converted_from=file)
