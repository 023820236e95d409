"""Zero-shot tests: a checkpoint on the classes of another set, CLIP untrained, how sure it is, and what reports say."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config, ModelConfig
from dfer_dist.data.loading.loader import evaluation_loader
from dfer_dist.data.loading.sampler import all_clips
from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from dfer_dist.data.sources.records import ELEVEN, SEVEN
from dfer_dist.evaluation.evaluate import evaluate_checkpoint, load_model
from dfer_dist.evaluation.metrics import score
from dfer_dist.evaluation.significance import against_chance
from dfer_dist.evaluation.zero_shot import for_classes, zero_shot
from dfer_dist.models.build import build_model
from dfer_dist.models.class_texts import DESCRIPTIONS
from dfer_dist.models.dferclip import DFERCLIP
from dfer_dist.models.tokenizer import CaptionTokenizer
from dfer_dist.models.towers.open_clip_models import TINY, build_clip
from dfer_dist.reporting.extra_tables import zero_shot_table
from dfer_dist.reporting.files import write_report
from dfer_dist.reporting.results import load_run
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json
from tests.helpers.made_runs import make_run
from tests.helpers.models.official_checkpoints import dfer, ours
from tests.helpers.models.tiny_models import FINE

FEW = ["data.workers=0", "train.precision=fp32"]


@pytest.fixture(scope="session")
def mafw(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The clips of ``tiny_source`` as a set of eleven classes, four of which have no clip; read only."""
    return pack(
        read_lists("mafw", tiny_source / "frames", tiny_source / "lists"),
        "mafw",
        tmp_path_factory.mktemp("mafw"),
        workers=1,
    )


def saved_as(
    folder: Path,
    settings: ModelConfig,
    index: Index | None = None,
    classes: tuple[str, ...] = SEVEN,
) -> DFERCLIP:
    """A checkpoint of a random model, as if trained for fold 2 of ``index``, or of a set that is nowhere."""
    model = ours(folder, settings, classes)
    saved = checkpoint.read(folder)
    state = {
        "dataset": index.name if index else "ELSEWHERE",
        "index_hash": index.hash if index else "0",
        "config_hash": "c",
    }
    checkpoint.write(folder, saved.model, saved.optimizer, saved.config, {**saved.state, **state})
    return model


def table(path: Path) -> tuple[list[str], list[int], torch.Tensor]:
    data = pq.read_table(path).to_pydict()
    return data["key"], data["label"], torch.tensor(data["logits"])


@torch.no_grad()
def features(model: DFERCLIP, index: Index, config: Config) -> tuple[list[str], torch.Tensor]:
    clips = all_clips(index, range(len(index.shards)))
    keys, found = [], []
    for batch in evaluation_loader(index, config.data, clips, batch=6):
        keys += batch.keys
        found.append(
            model.outputs(
                batch.pixels(torch.device("cpu")),
                tokens=torch.zeros(6, 3, dtype=torch.int64),
                with_logits=False,
            ).video
        )
    return keys, torch.cat(found)


class Case(NamedTuple):
    """A checkpoint of a random model of seven classes, tested on the eleven of ``mafw``: what was printed, and the result's file."""

    model: DFERCLIP
    folder: Path
    overrides: list[str]
    text: str
    result: Path


@pytest.fixture(scope="module")
def tested(mafw: Index, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("tested")
    model = saved_as(root / "c", ModelConfig())
    overrides = [f"data.shards={mafw.root}", "train.device=cpu", *FEW]
    text = dfer("eval", root / "c", "--zero-shot", "--out", root / "z.parquet", *overrides)
    return Case(model, root / "c", overrides, " ".join(text.split()), root / "z.json")


@torch.no_grad()
def test_a_checkpoint_on_other_classes_by_hand(tested: Case, mafw: Index) -> None:
    model, folder, overrides, flat, path = tested
    keys, labels, logits = table(path.with_suffix(".parquet"))
    assert len(set(keys)) == 60 and logits.shape == (60, 11)
    order, video = features(model, mafw, load_config(str(folder / checkpoint.CONFIG), overrides))
    sentences = model.description_features(
        CaptionTokenizer()([DESCRIPTIONS[name] for name in ELEVEN])
    )
    want = dict(zip(order, 100 * video @ sentences.t(), strict=True))
    torch.testing.assert_close(
        logits, torch.stack([want[key] for key in keys]), rtol=1e-4, atol=1e-3
    )
    result, scores = read_json(path), score(labels, logits.numpy(), ELEVEN)
    assert (result["uar"], result["war"], result["confusion"]) == (
        scores.uar,
        scores.war,
        scores.confusion,
    )
    assert (result["zero_shot"], result["dataset"], result["fold"], result["context"]) == (
        True,
        "mafw",
        None,
        "left out",
    )
    assert {k: result["trained_on"][k] for k in ("dataset", "fold", "objective")} == {
        "dataset": "ELSEWHERE",
        "fold": 2,
        "objective": "labels",
    }
    assert result["trained_on"]["classes"] == list(SEVEN) and result["texts"]["positive"][
        "contempt"
    ] == [DESCRIPTIONS["contempt"]]
    assert (
        "zero-shot on mafw, all folds, 60 clips; trained on ELSEWHERE without fold 2, on labels"
        in flat
    )
    assert "the learned context belongs to the classes of the training and was left out" in flat
    commonest = max(scores.support.values())
    assert (
        f"WAR {result['war']:.2f} (95 % " in flat
        and f"chance {100 * commonest / 60:.2f} (always" in flat
    )
    plain = evaluate_checkpoint(folder, 2, overrides, None).scores
    assert (plain.classes, plain.n) == (list(SEVEN), 12)


def fitted(folder: Path, classes: tuple[str, ...], *overrides: str) -> tuple[DFERCLIP, ModelConfig]:
    saved = checkpoint.read(folder, weights_only=True)
    with_weights, config = for_classes(
        saved, load_config(str(folder / checkpoint.CONFIG), overrides), classes
    )
    return load_model(with_weights, config, classes), config.model


def test_which_context_and_which_sentences_go_along(tmp_path: Path) -> None:
    own = saved_as(tmp_path / "own", ModelConfig())
    for classes, overrides, kept in (
        (SEVEN, [], 8),
        (SEVEN, ["model.text=names"], 0),
        (SEVEN[::-1], [], 0),
        (ELEVEN, [], 0),
    ):
        model, cfg = fitted(tmp_path / "own", classes, *overrides)
        assert cfg.context_tokens == kept, (classes, overrides)
        assert kept == 0 or torch.equal(model.prompt.context, own.prompt.context)  # type: ignore[arg-type]
    shared = saved_as(tmp_path / "shared", ModelConfig(class_specific=False, context_tokens=3))
    model, cfg = fitted(tmp_path / "shared", ELEVEN)
    assert cfg.context_tokens == 3 and torch.equal(model.prompt.context, shared.prompt.context)  # type: ignore[arg-type]
    texts = {name: [f"a {name} face"] for name in ("joy", "fear")}
    both = replace(
        ModelConfig(**FINE),
        sentences=texts,
        negative_sentences={"joy": ["glum."], "fear": ["calm."]},
    )  # type: ignore[arg-type]
    trained = saved_as(tmp_path / "both", both, classes=("joy", "fear"))
    assert fitted(tmp_path / "both", ("joy", "fear"))[1].sentences == texts
    model, cfg = fitted(tmp_path / "both", SEVEN)
    assert (cfg.sentences, cfg.negative_sentences) == (None, None), (
        "theirs are of other classes: what model.text says"
    )
    part = "text.transformer.resblocks.0.mlp_adapter.parts.negative.up.weight"
    assert (
        torch.equal(model.get_parameter(part), trained.get_parameter(part))
        and model.get_parameter(part).any()
    )
    mine = [
        "model.sentences={awe: [an open mouth.], fear: [wide eyes.]}",
        "model.negative_sentences={awe: [x], fear: [y]}",
    ]
    assert fitted(tmp_path / "both", ("fear", "awe"), *mine)[1].sentences == {
        "fear": ["wide eyes."],
        "awe": ["an open mouth."],
    }
    with pytest.raises(UserError, match=r"model\.sentences has nothing for class 'grief'"):
        fitted(tmp_path / "both", ("fear", "grief"), *mine)
    with pytest.raises(UserError, match="no description for class 'grief'"):
        fitted(tmp_path / "own", ("fear", "grief"))


def test_clips_that_were_trained_on_are_never_a_test(
    tiny_shards: Index, mafw: Index, tmp_path: Path
) -> None:
    saved_as(tmp_path / "c", ModelConfig(), tiny_shards)
    overrides = [f"data.shards={tiny_shards.root}", *FEW]
    own = zero_shot(tmp_path / "c", None, overrides, None)
    assert (own["fold"], own["n"], own["context"]) == (2, 12, "kept")
    assert (
        evaluate_checkpoint(tmp_path / "c", None, overrides, None).scores.confusion
        == own["confusion"]
    )
    with pytest.raises(UserError, match="fold 1 was among the training clips"):
        zero_shot(tmp_path / "c", 1, overrides, None)
    elsewhere = zero_shot(tmp_path / "c", 1, [f"data.shards={mafw.root}", *FEW], None)
    assert (elsewhere["fold"], elsewhere["n"]) == (1, 12)


@torch.no_grad()
def test_clip_as_it_was_pretrained(tiny_shards: Index, tmp_path: Path) -> None:
    torch.manual_seed(5)
    clip = build_clip(TINY, 64).eval()
    save_file(
        {name: w.contiguous() for name, w in clip.state_dict().items()},
        tmp_path / "clip.safetensors",
    )
    overrides = [
        f"data.shards={tiny_shards.root}",
        f"model.pretrained={tmp_path / 'clip.safetensors'}",
        "data.image_size=64",
        *FEW,
    ]
    more = [
        "model.text=person",
        "model.image=adapters",
        "model.text_tower=lora",
        "data.num_frames=3",
    ]
    result = zero_shot(Path("demo"), None, [*overrides, *more], tmp_path / "z.parquet")
    assert (result["n"], result["trained_on"], result["fold"], result["context"]) == (
        60,
        None,
        None,
        "none",
    )
    assert result["pretrained_sha256"]
    config = load_config("demo", [*overrides, "data.num_frames=3"])
    plain = ModelConfig(
        backbone="tiny",
        pretrained=config.model.pretrained,
        context_tokens=0,
        normalize=True,
        temporal=FINE["temporal"],
    )  # type: ignore[arg-type]
    model = build_model(plain, SEVEN, 3, 64).eval()
    keys, _, logits = table(tmp_path / "z.parquet")
    order, video = features(model, tiny_shards, config)
    text = model.description_features(
        CaptionTokenizer()([f"a person with an expression of {name}" for name in SEVEN])
    )
    want = dict(zip(order, video @ text.t() / config.model.temperature, strict=True))
    torch.testing.assert_close(
        logits, torch.stack([want[key] for key in keys]), rtol=1e-4, atol=1e-4
    )


def test_mistakes_are_named(tiny_shards: Index, tmp_path: Path) -> None:
    overrides = [f"data.shards={tiny_shards.root}", "model.pretrained=none"]
    for what, message in (
        (Path("demo"), "tiny has random weights"),
        (Path("dmo"), "no experiment 'dmo'"),
        (tmp_path / "no", "no complete checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            zero_shot(what, None, overrides, None)
    with pytest.raises(UserError, match="fold 0 is out of range"):
        zero_shot(Path("demo"), 0, overrides[:1], None)
    with pytest.raises(UserError, match=r"ends with \.parquet"):
        zero_shot(Path("demo"), None, overrides, tmp_path / "out")


def test_chance_against_the_definitions() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 300, p=[0.5, 0.3, 0.2, 0])
    guess, good = rng.integers(4, size=300), np.where(rng.random(300) < 0.7, labels, 0)
    blind = against_chance(labels, guess, 4, permutations=499)
    assert blind.war == pytest.approx(100 * (labels == 0).mean()) and blind.uar == pytest.approx(
        100 / 3
    )
    assert blind.war_p > 0.99 and blind.uar_p > 0.05
    sure = against_chance(labels, good, 4, permutations=499)
    assert sure.war_p < 1e-6 and sure.uar_p == 1 / 500
    always = against_chance(labels, np.zeros(300, int), 4, permutations=99)
    assert always.uar_p == 1, "in any order the same predictions have the same UAR"
    assert 0.4 < always.war_p < 0.6


def test_p_of_guesses_is_spread_evenly() -> None:
    rng = np.random.default_rng(1)
    p = [
        against_chance(
            rng.integers(3, size=60), rng.integers(3, size=60), 3, permutations=99, seed=i
        ).uar_p
        for i in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.1 and 0.4 < np.mean(p) < 0.6


def put(run: RunDir, fold: int, tested: Case, **fields: Any) -> Path:
    """Write a result as ``--out fold-K/zero-shot-mafw.parquet`` does, with another training."""
    out = run.fold(fold).root / "zero-shot-mafw.json"
    result = read_json(tested.result)
    about = {
        **result["trained_on"],
        "dataset": "DFEW",
        "fold": fold,
        "config_hash": "aa",
        "index_hash": "bb",
        **fields,
    }
    write_json(out, {**result, "trained_on": about})
    shutil.copy(tested.result.with_suffix(".parquet"), out.with_suffix(".parquet"))
    return out


def test_a_report_says_what_was_zero_shot_and_trained_on_what(tested: Case, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", (1, 2), 2)
    assert "ero-shot" not in (write_report(run) and run.page.read_text())
    paths = [put(run, fold, tested, objective="descriptions") for fold in (1, 2)]
    write_report(run)
    results = [read_json(path) for path in paths]
    for page in (run.report, run.page, run.latex):
        text = page.read_text()
        assert "trained on DFEW, on descriptions without labels" in text, page
        assert f"{np.mean([r['uar'] for r in results]):.2f}" in text and "mean of 1, 2" in text
        assert (
            "mafw: the learned context belongs to the classes of the training and was left out."
            in text
        )
    shown = zero_shot_table(load_run(run))
    assert shown is not None and [row[:3] for row in shown.rows] == [
        ["mafw", "1", "60"],
        ["mafw", "2", "60"],
        ["mafw", "mean of 1, 2", ""],
    ]
    write_json(paths[0], {**results[0], "war": results[0]["war"] + 1})
    with pytest.raises(UserError, match="its war is not that of the predictions"):
        write_report(run)
    paths[0].unlink()
    put(run, 1, tested, config_hash="other")
    with pytest.raises(UserError, match="no result of this fold's checkpoints"):
        write_report(run)
