"""Files of version 1 (``tests/fixtures/v1``, made by ``make_v1.py``) with the present code.

The expected values were written by version 1 itself. "Equal" allows for rounding on another
processor.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import config_hash
from tests.helpers.cli import check_refusal, dfer
from tests.helpers.forked import Done
from tests.helpers.paths import ROOT

V1 = ROOT / "tests" / "fixtures" / "v1"
MODELS = ("dferclip", "lora", "finecliper")
TOLERANCE = 1e-4


@pytest.fixture
def v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the current folder: their paths are relative to it."""
    root = tmp_path / "v1"
    shutil.copytree(V1, root)
    monkeypatch.chdir(root)
    return root


def check_ok(done: Done) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


def read_logits(path: Path) -> tuple[list[str], np.ndarray]:
    """Keys and logits of a table of predictions."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return table["key"].to_pylist(), np.array(table["logits"].to_pylist())


def check_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)


def write_experiment(root: Path) -> None:
    """Write the experiment of the run ``dferclip`` with the present names of settings.

    Version 1 stored the absolute path of the backbone's sizes, and hashed it with the settings.
    """
    path, run = root / "dferclip.yaml", root / "runs" / "dferclip"
    path.write_text(path.read_text().replace("text_sides", "text_polarity"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("../../backbone.json", f"{root}/backbone.json"))
    stored_hash = json.loads((run / "run.json").read_text())["config_hash"]
    own_hash = config_hash(read_config(config))
    for file in (run / "run.json", *run.glob("fold-*/result.json")):
        file.write_text(file.read_text().replace(stored_hash, own_hash))


@pytest.mark.parametrize("name", MODELS)
def test_eval_of_a_checkpoint_gives_the_logits_of_v1(v1: Path, name: str) -> None:
    from dfer_dist.evaluation.evaluate import evaluate_checkpoint

    fold = v1 / "runs" / name / "fold-1"
    latest = fold / "checkpoints" / "LATEST"
    scores = evaluate_checkpoint(latest, None, [], v1 / "now.parquet").scores
    keys, logits = read_logits(v1 / "now.parquet")
    expected_keys, expected = read_logits(v1 / "evaluated" / f"{name}.parquet")
    assert keys == expected_keys
    check_equal(logits, expected)
    result = json.loads((fold / "result.json").read_text())
    assert (scores.n, scores.uar, scores.war) == (result["n"], result["uar"], result["war"])
    assert scores.confusion == result["confusion"]


def test_eval_accepts_present_names_for_a_v1_checkpoint(v1: Path) -> None:
    from dfer_dist.evaluation.evaluate import evaluate_checkpoint

    latest = v1 / "runs" / "finecliper" / "fold-1" / "checkpoints" / "LATEST"
    evaluate_checkpoint(latest, None, ["model.modality_ratio=0.25"], v1 / "now.parquet")
    check_equal(
        read_logits(v1 / "now.parquet")[1],
        read_logits(v1 / "evaluated" / "finecliper.parquet")[1],
    )


def test_export_of_a_v1_checkpoint_has_the_weights_of_v1(v1: Path) -> None:
    from dfer_dist.inference.export import export

    export(v1 / "runs" / "dferclip" / "fold-1" / "checkpoints" / "LATEST", v1 / "new", [])
    weights, expected = (load_file(v1 / f / "model.safetensors") for f in ("new", "export"))
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


def test_predict_with_a_v1_export_gives_the_table_of_v1(v1: Path) -> None:
    done = dfer(
        "predict", "export", "face.mp4", "--window", 1, "--step", 0.5, "--out", "now", cwd=v1
    )
    check_ok(done)
    rows = (v1 / "now" / "face.mp4.csv").read_text().splitlines()
    expected = (v1 / "predicted" / "face.mp4.csv").read_text().splitlines()
    assert rows[0] == expected[0] and len(rows) == len(expected) > 2
    for row, wanted in zip(rows[1:], expected[1:], strict=True):
        values, wanted_values = row.split(","), wanted.split(",")
        assert values[2] == wanted_values[2]
        assert [float(x) for x in values[3:]] == pytest.approx(
            [float(x) for x in wanted_values[3:]], abs=TOLERANCE
        )


def test_mlflow_loads_a_v1_export_in_a_fresh_process(v1: Path) -> None:
    """The export brings the code of version 1, which MLflow imports instead of the present one."""
    from dfer_dist.inference.exported import load

    with zipfile.ZipFile(v1 / "export" / "code.zip") as archive:
        archive.extractall(v1 / "export")
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 40, 30, 3), dtype=np.uint8)
    np.save(v1 / "frames.npy", frames)
    code = (
        "import mlflow, numpy; model = mlflow.pyfunc.load_model('export');"
        "numpy.save('probabilities.npy', model.predict(numpy.load('frames.npy')).to_numpy());"
        "import dfer_dist; print(dfer_dist.__file__)"
    )
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=v1, env=environment, capture_output=True, text=True)
    check_ok(done)
    assert done.stdout.strip().endswith("export/code/dfer_dist/__init__.py")
    check_equal(np.load(v1 / "probabilities.npy"), load(v1 / "export").probabilities(frames))


def test_report_of_a_v1_run_gives_the_summary_of_v1(v1: Path) -> None:
    run = v1 / "runs" / "dferclip"
    before = json.loads((run / "summary.json").read_text())
    check_ok(dfer("report", run, cwd=v1))
    after = json.loads((run / "summary.json").read_text())
    for key in ("dataset", "selection", "missing", "uar", "war", "majority", "shuffled"):
        assert after[key] == before[key], key
    assert before["pooled"].items() <= after["pooled"].items()
    for result, expected in zip(after["folds"], before["folds"], strict=True):
        assert expected.items() <= result.items()


def test_finished_v1_run_is_kept_by_the_same_command(v1: Path) -> None:
    write_experiment(v1)
    done = dfer("crossval", "dferclip.yaml", "--nproc", 1, cwd=v1)
    check_ok(done)
    assert "kept" in done.stdout


def test_training_of_a_v1_run_resumes_only_with_allow_drift(v1: Path) -> None:
    write_experiment(v1)
    run = v1 / "runs" / "dferclip"
    expected = json.loads((run / "fold-2" / "result.json").read_text())
    (run / "fold-2" / "result.json").unlink()
    command = ("crossval", "dferclip.yaml", "--nproc", 1)
    check_refusal(dfer(*command, cwd=v1), "belongs to another run: code was", "--allow-drift code")
    check_ok(dfer(*command, "--allow-drift", "code", "--allow-drift", "versions", cwd=v1))
    result = json.loads((run / "fold-2" / "result.json").read_text())
    for key in ("uar", "war", "confusion", "config_hash", "index_hash", "step"):
        assert result[key] == expected[key], key
    assert "code" in result["drift"]


def test_v1_experiment_file_names_the_present_key(v1: Path) -> None:
    done = dfer("crossval", "finecliper.yaml", "--name", "new", cwd=v1)
    check_refusal(done, "unknown key 'model.level", "it is now called 'model.modalit")
    assert not (v1 / "runs" / "new").exists()


def test_v1_shards_verify(v1: Path) -> None:
    check_ok(dfer("verify", "data", cwd=v1))
