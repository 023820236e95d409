"""Training on descriptions: the loss, what of a text is read, which adapters read it, and the same on one rank and on two."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file

from dfer_dist.checkpoints.portable import read
from dfer_dist.config.load import load_config
from dfer_dist.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    Supervision,
    TextPolarity,
    TrainConfig,
    check_values,
    split_batch,
)
from dfer_dist.data.captions.store import Source, Writer, clip_hashes, clip_keys
from dfer_dist.data.loading.sampler import all_clips
from dfer_dist.data.shards.index import Index, load_index
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.inference.export import export
from dfer_dist.inference.exported import load
from dfer_dist.models.backbone import TINY, build_clip
from dfer_dist.models.tokenizer import CaptionTokenizer
from dfer_dist.models.tuning import trained_line
from dfer_dist.planning.planner import DataSize, Machine, plan
from dfer_dist.planning.trace import outline, trace
from dfer_dist.runs.layout import RunDir
from dfer_dist.training.contrast import ClipTexts, contrast, read_clip_texts
from dfer_dist.training.fold import check_same_texts
from dfer_dist.training.objective import Objective
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from launch.runs import open_run
from tests.helpers.descriptions import MODEL
from tests.helpers.exported import DFER, SMALL
from tests.helpers.paths import HELPERS
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_models import CLASSES, FRAMES, perturb, tiny

ENGINE = HELPERS / "tuned_engine.py"
CPU = torch.device("cpu")


def features(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    video, text = (
        F.normalize(torch.randn(count, 8, generator=generator), dim=-1).requires_grad_()
        for _ in range(2)
    )
    return video, text


def test_the_loss_by_hand_with_a_clip_that_has_no_description() -> None:
    video, text = features()
    losses = contrast(video, text, torch.tensor([True, False, True, True]), 0.1)
    kept = [0, 2, 3]
    cosines = video[kept].double() @ text[kept].double().t() / 0.1
    by_hand = -(cosines.log_softmax(1).diagonal() + cosines.log_softmax(0).diagonal()) / 2
    assert losses[kept].tolist() == pytest.approx(by_hand.tolist(), rel=1e-5)
    assert losses[1] == 0
    losses.mean().backward()
    for x in (video, text):
        assert x.grad is not None and x.grad[kept].abs().sum(1).min() > 0.01
        assert not x.grad[1].any(), "neither pulled nor pushed"
    one = contrast(*features(), torch.tensor([False, True, False, False]), 0.1)
    none = contrast(*features(), torch.zeros(4, dtype=torch.bool), 0.1)
    assert one.tolist() == none.tolist() == [0, 0, 0, 0]


def test_labels_and_descriptions_are_added_with_a_weight_and_a_lost_clip_has_no_part() -> None:
    video, text = features()
    logits, labels, valid = (
        torch.randn(4, 3),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([True, True, True, False]),
    )
    outputs = {"positive": logits, "video": video, "description": text}
    both = Config(
        train=TrainConfig(objective=Supervision.both, description_weight=0.25),
        model=ModelConfig(temperature=0.5),
    )
    losses = Objective(both, [], CPU)(outputs, labels, valid, torch.ones(4, dtype=torch.bool))
    want = F.cross_entropy(logits, labels, reduction="none") + 0.25 * contrast(
        video, text, valid, both.model.temperature
    )
    assert losses[:3].tolist() == pytest.approx(want[:3].tolist()) and losses[3] == 0
    both.train.objective = Supervision.descriptions
    alone = Objective(both, [], CPU)
    assert not alone.per_polarity
    out = alone(
        {"video": video, "description": text}, labels, valid, torch.ones(4, dtype=torch.bool)
    )
    assert out.tolist() == pytest.approx(
        contrast(video, text, valid, both.model.temperature).tolist()
    )


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
    short = CaptionTokenizer(12)
    assert (
        tokenizer.decode(
            short(["The brows rise and stay high. The lips part. Up."])[0, 1:-1].tolist()
        ).strip()
        == "the brows rise and stay high ."
    )
    assert short(["The brows rise."]).shape == (1, 6), "no longer than the longest"


@torch.no_grad()
def test_a_description_is_read_as_clip_reads_it_and_by_its_own_adapters() -> None:
    texts = ["The brows rise.", "The jaw drops. The eyes widen and stare."]
    torch.manual_seed(0)
    want = build_clip(TINY, 64).eval().encode_text(SimpleTokenizer()(texts), normalize=True)
    tokens, clips = CaptionTokenizer()(texts), torch.zeros(2, FRAMES, 3, 64, 64, dtype=torch.uint8)
    own = tiny(description_ratio=0.1)
    shared = tiny(text_polarity=TextPolarity.positive)
    for model in (own, shared):
        torch.testing.assert_close(model.read(tokens), want, rtol=0, atol=1e-5)
    before = own.text_features()
    perturb(own, "parts.description")
    assert (own.read(tokens) - want).abs().max() > 1e-2
    assert torch.equal(own.text_features(), before), "texts of classes pass other adapters"
    assert (perturb(shared, "parts.positive").read(tokens) - want).abs().max() > 1e-2
    outputs = own(clips, per_polarity=True, tokens=tokens)
    assert list(outputs) == ["positive", "negative", "video", "description"]
    assert torch.equal(outputs["description"], own.read(tokens))
    assert list(own(clips, tokens=tokens)) == ["video", "description"]
    torch.testing.assert_close(
        outputs["positive"], outputs["video"] @ before[:3].t() / own.temperature
    )
    assert own(clips).shape == (2, len(CLASSES))


B16 = "dfew_finecliper_vitb16"


@pytest.mark.parametrize(
    ("words", "millions"),
    [
        (["model.description_ratio=0.08"], 14.42),
        (["model.description_ratio=0.25"], 16.58),
        (["model.description_ratio=0.08", "model.modalities=[parsing,landmarks]"], 20.06),
        ([], 13.42),
    ],
)
def test_tunable_parameters_on_vit_b_16(words: list[str], millions: float) -> None:
    config = load_config(B16, ["train.objective=both", *words])
    assert trained_line(outline(config, SEVEN)).startswith(f"trained: {millions:.2f} of ")


def test_one_and_two_ranks_learn_the_same_and_a_run_may_go_on_on_another_number(
    tmp_path: Path,
) -> None:
    """Each of two ranks has half of the clips, one of them without a description. With SGD, changes are as large as the gradients."""
    words = ["--kind", "adapters", "--objective", "both", "--optimizer", "sgd", "--folder"]
    one = run_ranks(ENGINE, 1, *words, str(tmp_path / "one"), "--stage", "1")
    two = run_ranks(ENGINE, 2, *words, str(tmp_path / "two"), "--stage", "3")
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert (
        one["losses"][-1] < one["losses"][0] - 0.01
        and one["changed"] == two["changed"]
        and one["frozen"] == two["frozen"] == 0
    )
    assert any(".parts.description.up" in name for name in one["changed"])
    a, b = (
        load_file(tmp_path / name / "step-00000003" / "model.safetensors")
        for name in ("one", "two")
    )
    for name in one["changed"]:
        assert (a[name] - b[name]).abs().max() <= 1e-4 * a[name].abs().max(), name
    again = run_ranks(
        ENGINE,
        1,
        *words,
        str(tmp_path / "again"),
        "--stage",
        "2",
        "--resume",
        str(tmp_path / "two" / "step-00000002"),
    )
    assert again["losses"] == pytest.approx(one["losses"][2:], rel=1e-4)


def describe(index: Index, skip: int = 1) -> Index:
    """Descriptions of every clip but each ``skip``-th, beside the shards."""
    rows = [(key, clip, f"The brows of {key} rise.") for key, clip in clip_hashes(index).items()]
    with Writer(index.root) as writer:  # type: ignore[arg-type]
        writer.add(MODEL, [row for i, row in enumerate(rows) if skip == 1 or i % skip])
    return index


@pytest.fixture(scope="module")
def described(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """A copy of ``tiny_shards`` where three of four clips are described; read only."""
    root = tmp_path_factory.mktemp("described") / "shards"
    return describe(load_index(Path(shutil.copytree(tiny_shards.root, root))), 4)  # type: ignore[arg-type]


def test_which_descriptions_a_fold_is_trained_on(
    described: Index, tiny_shards: Index, tmp_path: Path
) -> None:
    train, config = all_clips(described, described.train_shards(2)), Config()
    texts = read_clip_texts(described, train, 2, config)
    keys = clip_keys(described, train)
    assert set(texts.texts) == {key for i, key in enumerate(clip_hashes(described)) if i % 4} & set(
        keys
    )
    rest = 48 - len(texts.texts)
    assert (
        0 < rest < 20
        and str(texts)
        == f"descriptions: {48 - rest} of 48 training clips have one, {rest} are held against none"
    )
    tokens, has = texts.of([keys[0], "", *keys[1:4]])
    assert (
        has.tolist() == [key in texts.texts for key in (keys[0], "", *keys[1:4])]
        and not has.all()
        and has.any()
    )
    assert [row.count_nonzero().item() == 2 for row in tokens] == (~has).tolist()
    with pytest.raises(UserError, match="dfer describe makes it"):
        read_clip_texts(tiny_shards, train, 2, config)
    copy = load_index(Path(shutil.copytree(described.root, tmp_path / "shards")))  # type: ignore[arg-type]
    with Writer(copy.root) as writer:  # type: ignore[arg-type]
        hashes = clip_hashes(copy)
        writer.add(
            Source({**MODEL.about, "name": "other"}),
            [(k, hashes[k], "She is sad.") for k in hashes],
        )
    with pytest.raises(UserError, match=r"2 sources .* choose with data\.descriptions of"):
        read_clip_texts(copy, train, 2, config)
    with pytest.raises(UserError, match=r"none of the 48 clips .* has a description"):
        read_clip_texts(copy, train, 2, Config(data=DataConfig(descriptions="other")))
    with pytest.raises(ValueError, match="are tested in fold 1"):
        read_clip_texts(described, train, 1, config)


def test_a_run_is_not_opened_without_descriptions(
    tiny_shards: Index, described: Index, tmp_path: Path
) -> None:
    plain = [
        "model.context_tokens=0",
        "train.objective=descriptions",
        "tracking.enabled=false",
        "train.global_batch=8",
    ]
    for index, more, told in (
        (tiny_shards, [], "dfer describe makes it"),
        (described, ["data.descriptions=x"], "0 sources named x"),
    ):
        with pytest.raises(UserError, match=told):
            open_run(
                tmp_path, "r", "demo", [f"data.shards={index.root}", *plain, *more], [], None, 1
            )
    assert not any(tmp_path.iterdir())


def test_other_descriptions_than_those_of_the_checkpoint_are_refused() -> None:
    texts = ClipTexts({"a": "x"}, 2, 77)
    for state in ({"texts_sha256": texts.sha256}, {"texts_sha256": None}, {}):
        saved = SimpleNamespace(state=state, path="p")
        check_same_texts(saved, texts if state.get("texts_sha256") else None)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="other descriptions"):
            check_same_texts(saved, ClipTexts({"a": "y"}, 2, 77))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "told"),
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
            r"model\.description_ratio=0\.1: adapters of descriptions' own go with",
        ),
        (
            ["train.objective=both", "model.text_tower=frozen", "model.description_ratio=0.1"],
            r"model\.text_tower=adapters",
        ),
        (["train.description_weight=0"], "must be greater than 0"),
    ],
)
def test_what_needs_labels_is_refused_without_them(words: list[str], told: str) -> None:
    plain = [
        "train.objective=descriptions",
        "model.context_tokens=0",
        "model.text_polarity=positive",
    ]
    check_values(load_config(B16, plain))
    with pytest.raises(UserError, match=told):
        load_config(B16, [*plain, *words])


def test_a_step_may_not_come_in_parts() -> None:
    config = Config(train=TrainConfig(objective=Supervision.both, global_batch=8))
    assert split_batch(config, 2) == (4, 1)
    config.train.micro_batch = 2
    with pytest.raises(UserError, match=r"leave train\.micro_batch out \(a rank has 4 clips\)"):
        split_batch(config, 2)
    config.train.objective = Supervision.labels
    assert split_batch(config, 2) == (2, 2)


def test_a_plan_counts_the_texts() -> None:
    config = load_config(B16, ["train.global_batch=8", "data.num_frames=2"])
    config.model = replace(config.model, backbone="tiny", pretrained="none")
    both = load_config(B16, ["train.global_batch=8", "data.num_frames=2", "train.objective=both"])
    both.model = config.model
    machine, size = Machine("cuda", 2, 80e9, 1e12, 1e11, 1e-5), DataSize(tuple(SEVEN), 100, 5)
    assert {row.micro for row in plan(config, machine, size)} == {1, 2, 4}
    assert {row.micro for row in plan(both, machine, size)} == {4}
    labels, texts = (trace(c, SEVEN, fused_attention=True) for c in (config, both))
    a_text = (
        2 * 77 * 2 * 12 * 64 * 64
    )  # multiplications and additions of two blocks' matrices, forward
    assert 2 * a_text < texts.flops.clip - labels.flops.clip < 5 * a_text
    assert texts.live(4).max() > labels.live(4).max() + 4 * 77 * 64 * 2 * 10
    assert texts.unread == 0 < labels.unread


WORDS = [
    "model.context_tokens=0",
    "model.image=adapters",
    "model.text_tower=adapters",
    "model.temporal=mean",
]


@pytest.fixture(scope="module")
def trained(described: Index, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Fold 2, an epoch on descriptions alone."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["--fold", "2", "--name", "told", "--runs", str(runs), f"data.shards={described.root}"]
    words += [*SMALL, *WORDS, "train.objective=descriptions"]
    done = subprocess.run(
        [DFER, "train", "demo", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return RunDir(runs / "told")


def test_a_fold_trained_on_descriptions_alone(
    trained: RunDir, described: Index, tmp_path: Path
) -> None:
    fold = trained.fold(2)
    texts = read_clip_texts(described, all_clips(described, described.train_shards(2)), 2, Config())
    assert str(texts) in fold.log.read_text()
    result, saved = read_json(fold.result), read(fold.checkpoints / "LATEST")
    assert (result["objective"], result["described_clips"], result["n"]) == (
        "descriptions",
        len(texts.texts),
        12,
    )
    assert (saved.state["objective"], saved.state["texts_sha256"]) == ("descriptions", texts.sha256)
    assert {
        name.split(".parts.")[1].split(".")[0] for name in saved.model if name.startswith("text")
    } == {"positive"}
    assert all(w.any() for name, w in saved.model.items() if ".up." in name), (
        "everything has learned"
    )
    info = export(fold.checkpoints / "LATEST", tmp_path / "out", [])
    assert (
        info.objective == "descriptions"
        and "learned from" in (tmp_path / "out" / "README.md").read_text()
    )
    assert load(tmp_path / "out", device="cpu").config.train.objective is Supervision.descriptions
