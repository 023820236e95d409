"""The generated reference of all settings."""

from __future__ import annotations

from enum import Enum

import pytest

from dfer_dist.config.reference import reference
from dfer_dist.config.schema import Config, Precision, walk_settings
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
    page = reference()
    for key, _, default in walk_settings(Config()):
        for choice in type(default) if isinstance(default, Enum) else ():
            assert f"| `{key}={choice.name}` | {choice.value}"[:60] in page
            assert choice.value.endswith(".") and choice.value[0] != " ", choice


def test_choice_is_found_by_its_name() -> None:
    assert Precision("bf16") is Precision.bf16
    with pytest.raises(ValueError, match="fp8"):
        Precision("fp8")
