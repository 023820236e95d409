"""What cannot be converted, either way: one line, and nothing written."""

from __future__ import annotations

import sys
from pathlib import Path

import open_clip
import pytest
import torch

from dfer_dist.config.schema import ImageTuning, ModelConfig, TemporalKind, TextPolarity
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.inference.convert import from_official, to_official
from dfer_dist.inference.official import read_sentences
from dfer_dist.utils.errors import UserError
from tests.helpers.models.official_checkpoints import ours

DFER = Path(sys.executable).parent / "dfer"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("good")
    ours(folder / "ours", ModelConfig(), SEVEN)
    to_official(folder / "ours", folder / "theirs.pth", [])
    return torch.load(folder / "theirs.pth", weights_only=True)


def check(content: dict, state: dict, tmp_path: Path, match: str) -> None:
    torch.save({**content, "state_dict": state}, tmp_path / "changed.pth")
    with pytest.raises(UserError, match=match) as e:
        from_official(tmp_path / "changed.pth", tmp_path / "out")
    assert "changed.pth" in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        "prompt_learner.ctx",
        "image_encoder.conv1.weight",
        "temporal_net.cls_token",
        "clip_model_.logit_scale",
        "clip_model_.visual.proj",
        "text_encoder.ln_final.bias",
    ],
)
def test_a_missing_tensor(content: dict, tmp_path: Path, name: str) -> None:
    state = {n: w for n, w in content["state_dict"].items() if n != f"module.{name}"}
    check(content, state, tmp_path, name)


def test_a_tensor_of_another_shape(content: dict, tmp_path: Path) -> None:
    name = "module.temporal_net.temporal_transformer.layers.0.1.fn.norm.bias"
    check(
        content,
        content["state_dict"] | {name: torch.zeros(5)},
        tmp_path,
        "norm.bias is .5,. in the file",
    )


def test_an_unknown_tensor(content: dict, tmp_path: Path) -> None:
    check(
        content,
        content["state_dict"] | {"module.adapter.weight": torch.ones(3)},
        tmp_path,
        "adapter.weight is .3,. in the file, none in the model",
    )


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("image_encoder.positional_embedding", (1, 128), "image_size"),
        ("image_encoder.positional_embedding", (0, 128), "positional_embedding .* or an empty one"),
        ("image_encoder.conv1.weight", (8, 3, 16, 16), "narrower"),
        ("temporal_net.pos_embedding", (1, 1, 128), "num_frames"),
        ("prompt_learner.ctx", (7,), "prompt_learner.ctx of 2 or 3 dimensions"),
        ("prompt_learner.ctx", (7, 0, 128), "prompt_learner.ctx .* or an empty one"),
    ],
)
def test_sizes_of_no_model(
    content: dict, tmp_path: Path, name: str, shape: tuple[int, ...], match: str
) -> None:
    check(content, content["state_dict"] | {f"module.{name}": torch.zeros(shape)}, tmp_path, match)


def test_two_names_of_one_tensor_that_differ(content: dict, tmp_path: Path) -> None:
    name = "module.clip_model_.visual.proj"
    state = content["state_dict"] | {name: content["state_dict"][name] + 1}
    check(content, state, tmp_path, "clip_model_.visual.proj does not agree")


def test_another_number_of_classes(content: dict, tmp_path: Path) -> None:
    names = (
        "module.prompt_learner.ctx",
        "module.prompt_learner.token_prefix",
        "module.prompt_learner.token_suffix",
    )
    state = content["state_dict"] | {n: content["state_dict"][n][:5] for n in names}
    check(content, state, tmp_path, "5 classes")


def test_a_token_that_is_none_or_several(content: dict, tmp_path: Path) -> None:
    state = dict(content["state_dict"])
    suffix, embedding = (
        state[f"module.{n}"].clone()
        for n in ("prompt_learner.token_suffix", "clip_model_.token_embedding.weight")
    )
    suffix[2, 1] += 1e-3
    check(
        content,
        state | {"module.prompt_learner.token_suffix": suffix},
        tmp_path,
        "class 2: row 1 .* no token",
    )
    embedding[1] = state["module.prompt_learner.token_suffix"][0, 0]
    check(
        content,
        state | {"module.clip_model_.token_embedding.weight": embedding},
        tmp_path,
        "class 0: row 0 .* several tokens",
    )


def test_sentences_survive_what_writing_does_to_them(content: dict) -> None:
    state = {n.removeprefix("module."): w for n, w in content["state_dict"].items()}
    text = "it's (half-closed); 100 % of the face!"
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    ids = [*tokenizer.encode(text), tokenizer.eot_token_id]
    state["prompt_learner.token_suffix"] = state["clip_model_.token_embedding.weight"][
        torch.tensor([ids])
    ]
    (read,) = read_sentences(state)
    assert tokenizer.encode(read) == ids[:-1]


def test_what_is_there_already(content: dict, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "good.pth")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="exists"):
        from_official(tmp_path / "good.pth", tmp_path / "mine")
    with pytest.raises(UserError, match="exists"):
        to_official(tmp_path / "mine", tmp_path / "mine" / "letter.txt", [])
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    "settings",
    [
        ModelConfig(temperature=0.07),
        ModelConfig(normalize=True),
        ModelConfig(temporal_head_dim=32),
        ModelConfig(image=ImageTuning.lora),
        ModelConfig(image=ImageTuning.adapters),
        ModelConfig(text_polarity=TextPolarity.both),
        ModelConfig(context_tokens=0),
        ModelConfig(temporal=TemporalKind.mean),
        ModelConfig(sentences={name: ["a face.", "a human."] for name in SEVEN}),
    ],
    ids=[
        "temperature",
        "normalize",
        "head_dim",
        "lora",
        "adapters",
        "polarity",
        "fixed",
        "mean",
        "sentences",
    ],
)
def test_models_that_their_code_cannot_compute(settings: ModelConfig, tmp_path: Path) -> None:
    ours(tmp_path / "ours", settings, SEVEN)
    with pytest.raises(UserError, match="cannot compute this model"):
        to_official(tmp_path / "ours", tmp_path / "theirs.pth", [])
    assert not (tmp_path / "theirs.pth").exists()
