"""The file of a search's space: what it may say, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.utils.errors import UserError
from launch.sweeps.space import Range, Space, read_space

SPACE = """
optim.lr_image: {low: 1e-6, high: 1.0e-3, log: true}
train.label_smoothing: {low: 0, high: 0.2}
train.epochs: {low: 3, high: 9, int: true}
model.image: [all, none]
model.sentences: [null, {happiness: [a smile]}]
"""


def read(folder: Path, text: str, *overrides: str) -> Space:
    (folder / "space.yaml").write_text(text)
    return read_space(folder / "space.yaml", "demo", overrides)


def test_space_becomes_distributions_and_settings(tmp_path: Path) -> None:
    space = read(tmp_path, SPACE)
    assert space.values["optim.lr_image"] == Range(1e-6, 1e-3, log=True)
    assert space.values["model.sentences"] == ["null", '{"happiness": ["a smile"]}']
    kinds = {key: type(own).__name__ for key, own in space.distributions().items()}
    assert list(kinds.values()) == [
        "FloatDistribution",
        "FloatDistribution",
        "IntDistribution",
        *["CategoricalDistribution"] * 2,
    ]
    params = {"optim.lr_image": 1.23456e-5, "train.label_smoothing": 0.19999999}
    params |= {"train.epochs": 4, "model.image": "none", "model.sentences": "null"}
    assert space.settings(params) == [
        "optim.lr_image=1.235e-05",
        "train.label_smoothing=0.2",
        "train.epochs=4",
        "model.image=none",
        "model.sentences=null",
    ]


def test_rounding_stays_within_the_range() -> None:
    assert Range(1.23456e-5, 1).round(1.23457e-5) == 1.235e-5
    assert Range(1.23541e-5, 1).round(1.23542e-5) == 1.23541e-5
    assert Range(0, 1.99999).round(1.99998) == 1.99999


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: for each setting give {low"),
        ("[1, 2]", "must hold keys and values, not a list"),
        ("a: [", "cannot be read as YAML"),
        (
            "optim: {lr_image: {low: 1, high: 2}}",
            "optim is a group of settings: write optim.lr_image: … for",
        ),
        ("data: {augment: {flip: [0, 1]}}", "group of settings: write data.augment.flip: …"),
        ("a: 1\nb: [1, 2\n", "space.yaml cannot be read as YAML: line 3: did not find expected"),
        ("train.epochs: [1, 2]\ntrain.epochs: [3, 4]", "line 2: found duplicate key train.epochs"),
        ("optim.lr_imag: {low: 1, high: 2}", "did you mean 'optim.lr_image'"),
        ("optim.lr_image: {low: 1, high: 2, lg: true}", "optim.lr_image: give {low: …"),
        ("optim.lr_image: {low: 1}", "optim.lr_image: give {low: …"),
        ("optim.lr_image: {low: a, high: 2}", "optim.lr_image: give {low: …"),
        ("optim.lr_image: {low: 1, high: 2, log: maybe}", "optim.lr_image: give {low: …"),
        ("optim.lr_image: {low: 2, high: 2}", "low=2 is not below high=2"),
        ("optim.lr_image: {low: 0, high: 2, log: true}", "low=0 has no logarithm"),
        ("optim.lr_image: {low: -1, high: 2}", "optim.lr_image=-1.0: must be at least 0"),
        ("train.epochs: {low: 1.5, high: 9, int: true}", "low and high are whole numbers"),
        ("train.epochs: {low: 1, high: 9}", "could not be converted to Integer; add int: true"),
        ("model.image: [all]", "give two choices or more, each once"),
        ("model.image: [all, all]", "give two choices or more, each once"),
        ("model.image: [all, some]", "model.image"),
        ("data.workers: [1, 2]", "data.workers changes no score: leave it out"),
        ("train.seed: [1, 2]", "train.seed is not to be searched: the best one would be luck"),
        ("train.selection: [last, best_val]", "scores of different selections"),
        ("model.lora_rank: [2, 4]", "model.lora_rank: without effect in this experiment"),
        ("model.lora_rank: [2, 4]\nmodel.image: [all, last]", "model.lora_rank: without effect"),
        ("optim.momentum: [0.1, 0.9]", "leave the argument optim.momentum=… out"),
    ],
)
def test_fault_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, text, "optim.momentum=0.5")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_setting_may_apply_with_two_others_only(tmp_path: Path) -> None:
    text = "optim.lr_prompt: [0.1, 0.2]\nmodel.head: [linear, text]\nmodel.context_tokens: [0, 8]"
    given = ["model.head=linear", "model.head_init=zeros"]
    with pytest.raises(UserError, match=r"optim\.lr_prompt: without effect"):
        read(tmp_path, text.partition("\n")[0], *given)
    assert len(read(tmp_path, text, "model.head_init=zeros").values) == 3


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml cannot be read as YAML: .*No such file"):
        read_space(tmp_path / "none.yaml", "demo", [])
