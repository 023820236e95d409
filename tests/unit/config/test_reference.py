"""The generated reference of all settings."""

from __future__ import annotations

from dfer_dist.config.reference import reference
from dfer_dist.config.schema import Config, walk_settings
from dfer_dist.config.setting import info_of
from tests.helpers.paths import ROOT


def test_configuration_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "run python -m dfer_dist.config.reference"


def test_every_setting_has_one_sentence_of_help() -> None:
    for key, field, _ in walk_settings(Config()):
        text = info_of(field).help
        assert text.endswith(".") and text[0].isupper(), key


def test_every_value_of_an_enumeration_is_explained() -> None:
    explained = {"model.image", "model.text", "data.sampling", "train.objective", "optim.name"}
    for key, field, default in walk_settings(Config()):
        choices = info_of(field).choices
        if choices:
            assert list(choices) == [choice.name for choice in type(default)], key
            explained.discard(key)
    assert not explained
