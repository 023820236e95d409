"""Exported models: complete folders, logits equal to an evaluation's, changed files refused."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import CommitOperationAdd, ModelCard, metadata_load, snapshot_download

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import (
    ModelConfig,
    Precision,
)
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.evaluation.evaluate import evaluate_checkpoint
from dfer_dist.evaluation.metrics import bootstrap_ci
from dfer_dist.inference.convert import from_official, to_official
from dfer_dist.inference.export import export
from dfer_dist.inference.exported import CARD, CONFIG, INFO, WEIGHTS, load
from dfer_dist.models.class_texts import DESCRIPTIONS
from dfer_dist.reporting.class_scores import class_recalls
from dfer_dist.reporting.results import load_run
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import FoldResult
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, sha256_file, write_json
from launch import cli
from tests.helpers.data.videos import encode
from tests.helpers.models.exported import Case
from tests.helpers.models.official_checkpoints import OTHERS, ours
from tests.helpers.models.tiny_models import FINE
from tests.helpers.paths import ROOT

# Packages that training needs and predicting must not import.
TRAINING_ONLY = {"deepspeed", "mlflow", "submitit", "webdataset"}


def every_clip(index: Index, fold: int) -> dict[str, np.ndarray]:
    """All frames of the fold's test clips by key, uint8 [T, H, W, 3]."""
    reader = ClipReader(index)
    places = [(s, row) for s in index.test_shards(fold) for row in range(index.shards[s].clips)]
    return {
        clip.key: clip.frames
        for clip in (reader.read(s, row, lambda _, n: np.arange(n)) for s, row in places)
    }


def run_outside_checkout(folder: Path, blocks: list[str], blocked: set[str]) -> list[str]:
    """Run code blocks in ``folder``; return what they print, each with where it found the package.

    No checkout can be imported. The ``blocked`` modules cannot be imported in the first block, and
    DeepSpeed in no block. The package is imported anew in each block.
    """
    script = f"""
import sys
# -S leaves out the .pth files of site-packages, which lead to a checkout.
sys.path.append({sysconfig.get_path("purelib")!r})
path, blocked = list(sys.path), {sorted(blocked)!r}
for block in {blocks!r}:
    for name in blocked:
        sys.modules[name] = None
    exec(block, dict())
    print(sys.modules["dfer_dist"].__file__)
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "dfer_dist" or module is None:
            del sys.modules[name]
    blocked = ["deepspeed"]
"""
    command, env = [sys.executable, "-P", "-S", "-c", script], {"HOME": "/nowhere"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def names(requirements: str) -> set[str]:
    """Return the distributions of a list of requirements, as module names."""
    lines = [line for line in requirements.splitlines() if line and not line.startswith("#")]
    return {re.split(r"[=<>]", line)[0].strip().replace("-", "_") for line in lines}


def dfer(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", ["dfer", *map(str, args)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code


def python_of(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)


@pytest.fixture
def moved(exported: Case, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.out, tmp_path / "moved"))


def test_logits_equal_those_of_an_evaluation(
    exported: Case, tiny_shards: Index, tmp_path: Path
) -> None:
    model, clips = load(exported.out, device="cpu"), every_clip(tiny_shards, 2)
    for views, crops, mirror in ((1, 1, False), (2, 1, False), (2, 3, True)):
        evaluate_checkpoint(
            exported.fold.checkpoints / "LATEST",
            None,
            [f"eval.views={views}", f"eval.crops={crops}", f"eval.mirror={mirror}"],
            tmp_path / "p.parquet",
        )
        test = model.config.eval
        test.views, test.crops, test.mirror = views, crops, mirror
        table = pq.read_table(tmp_path / "p.parquet")
        assert sorted(table["key"].to_pylist()) == sorted(clips) and len(clips) == 12
        for key, logits in zip(table["key"].to_pylist(), table["logits"].to_pylist(), strict=True):
            np.testing.assert_allclose(
                model.logits(clips[key][None])[0], logits, rtol=1e-4, atol=1e-4
            )
    both = np.random.default_rng(0).integers(
        0, 256, (12, 9, 50, 40, 3), dtype=np.uint8
    )  # more than a batch
    one_by_one = np.concatenate([model.logits(clip[None]) for clip in both])
    np.testing.assert_allclose(model.logits(both), one_by_one, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        model.probabilities(both), torch.tensor(one_by_one).softmax(-1), atol=1e-5
    )


def test_folder_describes_model_without_local_paths(exported: Case, tiny_shards: Index) -> None:
    result, about = read_json(exported.fold.result), read_json(exported.out / INFO)
    card = (exported.out / CARD).read_text()
    assert about["result"] == result
    assert "Fold 2 of dfew, 12 clips" in card
    for word in ("config_hash", "index_hash", "code_hash"):
        assert about[word] and about[word] in card
    assert "the test fold was read once" in card
    assert list(about["texts"].items()) == [
        (name, [DESCRIPTIONS[name]]) for name in tiny_shards.classes
    ]
    assert all(text[0] in card for text in about["texts"].values())
    for name in (WEIGHTS, CONFIG, INFO):
        assert sha256_file(exported.out / name) in card
        assert (exported.out / name).stat().st_mode & 0o044 == (
            exported.out / CARD
        ).stat().st_mode & 0o044
    config = read_config(exported.out / CONFIG)
    assert config.data.image_size == 32 and config.model.sentences == about["texts"]
    texts = [
        f.read_text(errors="replace")
        for f in exported.out.rglob("*")
        if f.is_file() and "code" not in f.parts
    ]
    assert not [
        text[:80]
        for text in texts
        if str(exported.out.parent) in text or str(tiny_shards.root) in text
    ]
    assert not list(exported.out.rglob("__pycache__")) and not list(exported.out.parent.glob(".*"))


def test_card_states_scores_with_intervals_and_baselines(exported: Case) -> None:
    result, card = FoldResult.read(exported.fold.result), (exported.out / CARD).read_text()
    table = pq.read_table(exported.fold.predictions)
    labels, said = table["label"].to_numpy(), np.array(table["logits"].to_pylist()).argmax(1)
    cells = []
    for metric, value in (("uar", result.uar), ("war", result.war)):
        low, high = bootstrap_ci([(labels, said)], 7, metric)
        cells += [f"{value:.2f}", f"{low:.2f} to {high:.2f}"]
    assert f"| this model | {' | '.join(cells)} |" in card
    commonest = max(result.support, key=result.support.__getitem__)
    war = 100 * result.support[commonest] / 12
    assert f"| always {commonest} | {100 / 7:.2f} |  | {war:.2f} |  |" in card
    assert f"| Truth | {' | '.join(result.classes)} |" in card
    for name, counts in zip(result.classes, result.confusion, strict=True):
        assert f"| {name} | {' | '.join(map(str, counts))} |" in card
    low, high = class_recalls(load_run(RunDir(exported.fold.root.parent)).summary)[0].interval
    assert f" | {low:.2f} to {high:.2f} |" in card


def test_hub_reads_the_metadata_of_the_card(exported: Case) -> None:
    result = read_json(exported.fold.result)
    card = ModelCard.load(exported.out / CARD)
    assert card.data.library_name == "dfer_dist"
    assert card.data.pipeline_tag == "video-classification"
    assert (card.data.license, card.data.license_link) == ("other", "LICENSE")
    assert (
        (exported.out / card.data.license_link).read_text().endswith((ROOT / "LICENSE").read_text())
    )
    assert [(r.metric_name, r.metric_value) for r in card.data.eval_results] == [
        ("UAR (%)", round(result["uar"], 2)),
        ("WAR (%)", round(result["war"], 2)),
    ]
    assert {(r.task_type, r.dataset_type) for r in card.data.eval_results} == {
        ("video-classification", "dfew")
    }
    # what they would write is what they read: no key is unknown or lost
    assert ModelCard(str(card)).data.to_dict() == metadata_load(exported.out / CARD)


def test_model_from_the_hub_predicts_the_same(
    exported: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, video = tmp_path / "out", tmp_path / "a.mp4"
    checkpoint = exported.fold.checkpoints / "LATEST"
    dfer(monkeypatch, "export", checkpoint, out, "--hub-layout", "--license", "cc-by-nc-4.0")
    assert f"hf upload USER/NAME {out}" in capsys.readouterr().out
    assert ModelCard.load(out / CARD).data.license == "cc-by-nc-4.0"
    labels = json.loads((out / "config.json").read_text())["id2label"]
    assert list(labels.values()) == list(load(out).classes)

    # as huggingface_hub stores a download: links to files that are named by their content
    files = [file for file in out.rglob("*") if file.is_file()]
    repository = tmp_path / "hub" / "models--user--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    for file in files:
        uploaded = CommitOperationAdd(file.relative_to(out).as_posix(), file)
        blob = repository / "blobs" / uploaded.upload_info.sha256.hex()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = snapshot / uploaded.path_in_repo
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    found = snapshot_download("user/name", cache_dir=tmp_path / "hub", local_files_only=True)

    rng = np.random.default_rng(0)
    encode(video, rng.integers(0, 256, (8, 48, 64, 3), dtype=np.uint8))
    for model, folder in ((exported.out, "local"), (found, "hub")):
        dfer(monkeypatch, "predict", model, video, "--out", tmp_path / folder)
    tables = [(tmp_path / folder / "a.mp4.csv").read_text() for folder in ("local", "hub")]
    assert tables[0] == tables[1]


def test_license_that_the_hub_cannot_have_is_refused(exported: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'CC BY' is no license of the Hugging Face Hub"):
        export(exported.fold.checkpoints / "LATEST", tmp_path / "out", [], "CC BY")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["step", "config_hash", "index_hash", "checkpoint", "fold"])
def test_result_of_other_weights_is_left_out(exported: Case, tmp_path: Path, what: str) -> None:
    fold = Path(shutil.copytree(exported.fold.root, tmp_path / "fold-2"))
    result = read_json(fold / "result.json")
    write_json(
        fold / "result.json", {**result, what: 1 if isinstance(result[what], int) else "another"}
    )
    info = export(fold / "checkpoints", tmp_path / "out", [])
    assert info.result is None
    card = (tmp_path / "out" / CARD).read_text()
    assert "no test result of these very weights" in card and "UAR" not in card


def test_card_code_runs_without_training_packages(moved: Path) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    installed = names(config["options"]["install_requires"])
    blocked = TRAINING_ONLY | installed - names((moved / "requirements.txt").read_text())
    assert not TRAINING_ONLY & names((moved / "requirements.txt").read_text())
    predict, mlflow = python_of(moved / CARD)
    code = [line for line in predict.splitlines() if line and not line.startswith("#")]
    assert len(code) <= 10 and predict in (ROOT / "docs" / "guides" / "inference.md").read_text()

    out = run_outside_checkout(moved, [predict, mlflow], blocked)
    model = load(moved, device="cpu")
    want = model.probabilities(np.zeros((1, 40, 224, 224, 3), np.uint8))[0].tolist()
    assert [line.split()[0] for line in out[:7]] == out[8].split() == list(model.classes)
    assert [float(line.split()[1]) for line in out[:7]] == pytest.approx(want, abs=2e-3)
    assert [float(x) for x in out[9].split()[1:]] == pytest.approx(want, abs=2e-3)
    assert out[7] == out[10] == str(moved / "code" / "dfer_dist" / "__init__.py")


def test_mlflow_run_and_registry_accept_folder(
    exported: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow sets the variable, too
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = mlflow.create_experiment(
        "models", artifact_location=(tmp_path / "artifacts").as_uri()
    )
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_artifacts(str(exported.out), "model")
    mlflow.register_model(f"runs:/{run.info.run_id}/model", "faces")
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 40, 30, 3), dtype=np.uint8)
    loaded = mlflow.pyfunc.load_model("models:/faces/1")
    got = loaded.predict(frames)
    model = load(exported.out)
    assert list(got.columns) == list(model.classes)
    np.testing.assert_allclose(got.to_numpy(), model.probabilities(frames), atol=1e-5)
    assert loaded.metadata.get_input_schema() is not None
    black = model.probabilities(np.zeros((1, 2, 4, 4, 3), np.uint8))
    np.testing.assert_allclose(loaded.predict(loaded.input_example), black, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("converted", [False, True])
def test_export_accepts_converted_checkpoints(converted: bool, tmp_path: Path) -> None:
    settings, classes = OTHERS[1]
    model = ours(tmp_path / "ours", settings, classes)
    folder = tmp_path / "ours"
    if converted:
        to_official(folder, tmp_path / "theirs.pth", [])
        folder = tmp_path / "again"
        from_official(tmp_path / "theirs.pth", folder, settings.token_position)
    export(folder, tmp_path / "out", [])
    shutil.rmtree(folder)
    (tmp_path / "sizes.json").unlink()  # the backbone's sizes are in the folder
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    loaded = load(tmp_path / "out", device="cpu", precision="fp32")
    assert torch.equal(torch.random.get_rng_state(), before)
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 48, 48, 3), dtype=np.uint8)
    want = model(torch.from_numpy(frames).permute(0, 1, 4, 2, 3)).numpy()
    np.testing.assert_allclose(loaded.logits(frames), want, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "out" / CARD).read_text()
    assert "no test result" in card and (
        not converted or "`theirs.pth` of DFER-CLIP's authors" in card
    )
    half = load(tmp_path / "out", device="cpu", precision=Precision.bf16)
    assert 0 < np.abs(half.logits(frames) - want).max() < 0.05 * np.abs(want).max()


def test_export_is_atomic_and_never_overwrites(
    exported: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latest = exported.fold.checkpoints / "LATEST"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        export(latest, tmp_path / "full", [])
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    with pytest.raises(UserError, match=r"'model\.temperature=1' cannot be set here"):
        export(latest, tmp_path / "out", ["model.temperature=1"])

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dfer_dist.inference.export.write_mlflow", no_space)
        with pytest.raises(OSError, match="No space"):
            export(latest, tmp_path / "out", [])
    assert [f.name for f in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    export(latest, tmp_path / "empty", [])
    assert sha256_file(tmp_path / "empty" / WEIGHTS) == sha256_file(exported.out / WEIGHTS)


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        (WEIGHTS, None, None, "differs from its sha256"),
        (CONFIG, b"temperature: 0.07", b"temperature: 0.08", "differs from its sha256"),
        (INFO, b'"sadness"', b'"madness"', "was changed"),
        (INFO, b'"version": 1', b'"version": 2', "not of version 1"),
        (WEIGHTS, b"", b"", "is missing"),
        (INFO, b"", b"", "no exported model"),
    ],
)
def test_changed_file_is_one_line_error(
    moved: Path,
    name: str,
    old: bytes | None,
    new: bytes,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = bytearray((moved / name).read_bytes())
    if old is None:
        data[len(data) // 2] ^= 1
    elif old:
        assert data.count(old) >= 1
        data = data.replace(old, new)
    (moved / name).write_bytes(data)
    if old == b"":
        (moved / name).unlink()
    monkeypatch.setattr(sys, "argv", ["dfer", "predict", str(moved), "video.mp4"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1
    assert reason in error and str(moved) in error


def test_frames_of_other_type_or_shape_are_refused(exported: Case) -> None:
    model = load(exported.out)
    for wrong in (
        np.zeros((2, 8, 32, 32, 3)),
        np.zeros((8, 32, 32, 3), np.uint8),
        np.zeros((1, 0, 9, 9, 3), np.uint8),
    ):
        with pytest.raises(UserError, match="give uint8"):
            model.logits(wrong)
    assert model.logits(np.zeros((0, 8, 9, 9, 3), np.uint8)).shape == (0, 7)


@torch.no_grad()
def test_export_keeps_texts_of_both_polarities(tmp_path: Path) -> None:
    texts = {"fear": ["no fear at all."], "joy": ["anything but joy.", "glum."]}
    settings = ModelConfig(**FINE, adapter_time=True, negative_sentences=texts)  # type: ignore[arg-type]
    model = ours(tmp_path / "ours", settings, ("joy", "fear"))
    export(tmp_path / "ours", tmp_path / "out", [])
    about, card = (
        read_json(tmp_path / "out" / INFO),
        (tmp_path / "out" / CARD).read_text(),
    )
    assert about["negative_texts"] == texts and about["texts"]["joy"] == [
        "a person with an expression of joy"
    ]
    assert (
        "with the adapters and negative texts of FineCLIPER" in card and "anything but joy." in card
    )
    loaded = load(tmp_path / "out", device="cpu", precision="fp32")
    assert loaded.config.model.negative_sentences == texts
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 48, 48, 3), dtype=np.uint8)
    want = model(torch.from_numpy(frames).permute(0, 1, 4, 2, 3)).numpy()
    np.testing.assert_allclose(loaded.logits(frames), want, rtol=1e-4, atol=1e-4)
