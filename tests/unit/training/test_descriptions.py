"""Descriptions that a fold is trained on: which they are, their tokens and features."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from dfer_dist.checkpoints.state import CheckpointInfo
from dfer_dist.config.checks import check_values
from dfer_dist.config.load import load_config
from dfer_dist.config.schema import (
    Config,
    DataConfig,
    ExtraClasses,
    TextPolarity,
)
from dfer_dist.data.captions.store import Source, clip_hashes, open_writer
from dfer_dist.data.folds.clips import clips_of_set, fold_clips
from dfer_dist.data.loading.sampler import all_clips, clip_keys
from dfer_dist.data.shards.index import Index, load_index
from dfer_dist.data.shards.joint import join
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.models.flops import build_meta_model
from dfer_dist.models.tokenizer import CaptionTokenizer, clip_tokenizer
from dfer_dist.models.towers.open_clip_models import TINY, build_clip
from dfer_dist.models.tuning import trained_line
from dfer_dist.planning.estimate import Machine, plan
from dfer_dist.training.build import check_same_data
from dfer_dist.training.descriptions import ClipDescriptions, read_descriptions
from dfer_dist.utils.errors import UserError
from tests.helpers.data.descriptions import MODEL, captioned_copy
from tests.helpers.data.sets import pack_other
from tests.helpers.models.counted_steps import count_once, counted_steps  # noqa: F401 (a fixture)
from tests.helpers.models.tiny_models import CLASSES, FRAMES, perturb, tiny

B16 = "dfew_finecliper_vitb16"


@pytest.fixture(scope="module")
def captioned(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """A copy of ``tiny_shards`` in which three of four clips have a description; read only."""
    return captioned_copy(tiny_shards, tmp_path_factory.mktemp("captioned") / "shards")


def test_texts_are_cut_at_ends_of_sentences() -> None:
    reader, tokenizer = CaptionTokenizer(), SimpleTokenizer()
    texts = ["The brows rise! The lips part.", "", "A brow.", "word " * 100 + "end. Second."]
    tokens = reader(texts)
    assert tokens.shape == (4, 77) and tokens[3].count_nonzero() == 77
    assert torch.equal(tokens[:3], tokenizer(texts[:3])), "as open_clip has them"
    assert (
        tokens[3, -1] == tokenizer.eot_token_id
        and tokenizer.decode(tokens[3, 1:-1].tolist()).split() == ["word"] * 75
    )
    short = CaptionTokenizer(clip_tokenizer(12))
    assert (
        tokenizer.decode(
            short(["The brows rise and stay high. The lips part. Up."])[0, 1:-1].tolist()
        ).strip()
        == "the brows rise and stay high ."
    )
    assert short(["The brows rise."]).shape == (1, 6), "no longer than the longest"


@torch.no_grad()
def test_description_features_equal_clips_but_for_own_adapters() -> None:
    texts = ["The brows rise.", "The jaw drops. The eyes widen and stare."]
    torch.manual_seed(0)
    want = build_clip(TINY, 64).eval().encode_text(SimpleTokenizer()(texts), normalize=True)
    tokens, clips = CaptionTokenizer()(texts), torch.zeros(2, FRAMES, 3, 64, 64, dtype=torch.uint8)
    own = tiny(description_ratio=0.1)
    shared = tiny(text_polarity=TextPolarity.positive)
    for model in (own, shared):
        torch.testing.assert_close(model.description_features(tokens), want, rtol=0, atol=1e-5)
    before = own.text_features()
    perturb(own, "parts.description")
    assert (own.description_features(tokens) - want).abs().max() > 1e-2
    assert torch.equal(own.text_features(), before), "texts of classes pass other adapters"
    assert (
        perturb(shared, "parts.positive").description_features(tokens) - want
    ).abs().max() > 1e-2
    outputs = own.outputs(clips, tokens=tokens)
    assert all(output is not None for output in outputs)
    assert torch.equal(outputs.description, own.description_features(tokens))
    features = own.outputs(clips, tokens=tokens, with_logits=False)
    assert features.positive is None and features.negative is None
    assert torch.equal(features.video, outputs.video)
    torch.testing.assert_close(outputs.positive, outputs.video @ before[:3].t() / own.temperature)
    assert own(clips).shape == (2, len(CLASSES))


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        (["model.description_ratio=0.08"], 14.42),
        (["model.description_ratio=0.25"], 16.58),
        (["model.description_ratio=0.08", "model.modalities=[parsing,landmarks]"], 20.06),
        ([], 13.42),
    ],
)
def test_tunable_parameters_on_vit_b_16(settings: list[str], millions: float) -> None:
    config = load_config(B16, ["train.objective=both", *settings])
    assert trained_line(build_meta_model(config, SEVEN)).startswith(f"trained: {millions:.2f} of ")


def test_descriptions_of_a_fold_are_those_of_its_training_clips(
    captioned: Index, tiny_shards: Index, tmp_path: Path
) -> None:
    train, config = all_clips(captioned, captioned.train_shards(2)), Config()
    texts = read_descriptions(captioned, train, 2, config)
    keys = clip_keys(captioned, train)
    assert set(texts.texts) == {key for i, key in enumerate(clip_hashes(captioned)) if i % 4} & set(
        keys
    )
    rest = 48 - len(texts.texts)
    assert (
        0 < rest < 20
        and str(texts)
        == f"descriptions: {48 - rest} of 48 training clips have one, {rest} have none"
    )
    tokens, has = texts.tokenize([keys[0], "", *keys[1:4]])
    assert (
        has.tolist() == [key in texts.texts for key in (keys[0], "", *keys[1:4])]
        and not has.all()
        and has.any()
    )
    assert [row.count_nonzero().item() == 2 for row in tokens] == (~has).tolist()
    with pytest.raises(UserError, match="dfer describe makes it"):
        read_descriptions(tiny_shards, train, 2, config)
    copy = load_index(Path(shutil.copytree(captioned.root, tmp_path / "shards")))  # type: ignore[arg-type]
    with open_writer(copy) as writer:
        hashes = clip_hashes(copy)
        writer.add(
            Source({**MODEL.about, "name": "other"}),
            [(k, hashes[k], "She is sad.") for k in hashes],
        )
    with pytest.raises(UserError, match=r"2 sources .* choose with data\.descriptions of"):
        read_descriptions(copy, train, 2, config)
    with pytest.raises(UserError, match=r"none of the 48 clips .* has a description"):
        read_descriptions(copy, train, 2, Config(data=DataConfig(descriptions="other")))
    with pytest.raises(ValueError, match="are tested in fold 1"):
        read_descriptions(captioned, train, 1, config)


def test_descriptions_of_several_sets_are_kept_apart(
    captioned: Index, tiny_source: Path, tmp_path: Path
) -> None:
    packed = pack_other(tiny_source, tmp_path / "packed")
    other = captioned_copy(packed, tmp_path / "captioned")
    joint = join([captioned, other], ExtraClasses.leave_out)
    train, config = fold_clips(joint, 2).train, Config()
    texts = read_descriptions(joint, train, 2, config).texts
    expected = {
        f"{own.name}/{key}": text
        for number, own in enumerate((captioned, other))
        for key, text in read_descriptions(
            joint.one_set(number), clips_of_set(joint, train, number), 2, config
        ).texts.items()
    }
    assert texts == expected
    assert {key.partition("/")[0] for key in texts} == {"dfew", "other"}
    with pytest.raises(UserError, match=f"{packed.root} has no descriptions.jsonl"):
        read_descriptions(join([captioned, packed], ExtraClasses.keep), train, 2, config)


def test_checkpoint_of_other_descriptions_is_refused() -> None:
    other = CheckpointInfo(
        step=0, texts_sha256=ClipDescriptions({"a": "y"}, 2, clip_tokenizer()).sha256
    )
    for sha256 in (ClipDescriptions({"a": "x"}, 2, clip_tokenizer()).sha256, None):
        info = CheckpointInfo(step=0, texts_sha256=sha256)
        saved = SimpleNamespace(info=info, path="p")
        check_same_data(saved, info)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="other descriptions"):
            check_same_data(saved, other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["model.context_tokens=8"],
            r"model\.context_tokens needs them: set model\.context_tokens=0",
        ),
        (["model.text_polarity=both"], r"set model\.text_polarity=positive"),
        (["data.balanced=true"], r"set data\.balanced=false"),
        (["train.class_balance=0.9"], r"set train\.class_balance=0"),
        (["train.label_smoothing=0.1"], r"set train\.label_smoothing=0"),
        (
            ["model.description_ratio=0.1"],
            r"model\.description_ratio=0\.1: adapters of descriptions' own need",
        ),
        (
            ["train.objective=both", "model.text_tower=frozen", "model.description_ratio=0.1"],
            r"model\.text_tower=adapters",
        ),
        (["train.description_weight=0"], "must be greater than 0"),
    ],
)
def test_settings_that_need_labels_are_refused_without_them(
    settings: list[str], message: str
) -> None:
    plain = [
        "train.objective=descriptions",
        "model.context_tokens=0",
        "model.text_polarity=positive",
    ]
    check_values(load_config(B16, plain))
    with pytest.raises(UserError, match=message):
        load_config(B16, [*plain, *settings])


def test_plan_counts_the_texts() -> None:
    config = load_config(B16, ["train.global_batch=4", "data.num_frames=2"])
    config.model = replace(config.model, backbone="tiny", pretrained="none")
    both = load_config(B16, ["train.global_batch=4", "data.num_frames=2", "train.objective=both"])
    both.model = config.model
    machine = Machine("cuda", 2, 80e9, 1e12, 1e11, 1e-5)
    assert {step.micro for step in plan(config, machine, SEVEN)} == {1, 2}
    assert {step.micro for step in plan(both, machine, SEVEN)} == {2}
    labels, texts = (count_once(c, SEVEN, fused_attention=True) for c in (config, both))
    a_text = (
        2 * 77 * 2 * 12 * 64 * 64
    )  # multiplications and additions of two blocks' matrices, forward
    assert 2 * a_text < texts.flops.clip - labels.flops.clip < 5 * a_text
    assert texts.live(4).max() > labels.live(4).max() + 4 * 77 * 64 * 2 * 10
    assert texts.unread == 0 < labels.unread
