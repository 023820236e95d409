"""Training on tiny data with real ranks, the real launcher and a real sqlite store."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest
from safetensors.torch import save_file

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import split_batch
from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.loading.sampler import train_val_split
from dfer_dist.data.sources.records import SEVEN
from dfer_dist.evaluation.calibration import Outputs, fit_temperature, score_calibration
from dfer_dist.evaluation.evaluate import load_model, open_checkpoint, predict_here
from dfer_dist.evaluation.metrics import bootstrap_ci
from dfer_dist.inference.export import export
from dfer_dist.inference.exported import CARD, load
from dfer_dist.models.flops import model_flops
from dfer_dist.models.towers.open_clip_models import TINY, build_clip
from dfer_dist.reporting.results import read_predictions
from dfer_dist.runs.layout import RunDir
from dfer_dist.tracking.mlflow_runs import tracking_of
from dfer_dist.utils.files import read_json, sha256_file
from tests.helpers.data.web_server import Web
from tests.helpers.forked import Forked
from tests.helpers.paths import DFER
from tests.helpers.training.commands import (
    ONE_EPOCH,
    SMALL,
    arguments,
    close,
    dfer,
    one_epoch,
    predictions,
    start_slow,
    wait_for,
)


@pytest.fixture(scope="module")
def one_fold(trained, tiny_shards, tmp_path_factory):
    """The run ``trained``, and one of the same fold on two ranks."""
    runs = tmp_path_factory.mktemp("ranks")
    arguments = one_epoch(tiny_shards, runs, "train.micro_batch=2")
    command = ["train", "demo", "--fold", "2", "--nproc", "2", "--name", "two", *arguments]
    dfer(*command, forks_ranks=False)
    return trained, RunDir(runs / "two")


def test_operations_a_second_are_those_of_the_counted_step(one_fold):
    """Of one rank: two of them do half each. A rank's peak is one number."""
    for run, ranks in zip(one_fold, (1, 2), strict=True):
        config = read_config(run.config)
        micro, _ = split_batch(config, ranks)
        flops = model_flops(config, SEVEN, micro, train=True) / micro / ranks
        lines = [json.loads(line) for line in run.fold(2).metrics.read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        assert len(steps) == 6
        for line in steps:
            assert line["tflops"] * 1e12 == pytest.approx(flops * line["clips_per_second"])
        peaks = [line["tflops"] / line["mfu"] for line in steps]
        assert peaks == pytest.approx([peaks[0]] * 6)
    assert re.search(r"TFLOP/s, MFU \d+%, data wait", run.fold(2).log.read_text())


def test_one_and_two_ranks_give_equal_predictions(one_fold):
    one, two = (run.fold(2) for run in one_fold)
    (keys, logits), (other_keys, other_logits) = (
        predictions(one.predictions),
        predictions(two.predictions),
    )
    assert keys == other_keys
    assert close(other_logits, logits, 1e-3)
    results = [read_json(fold.result) for fold in (one, two)]
    assert results[0]["war"] == results[1]["war"]
    assert results[0]["n"] == 12
    losses = [
        [json.loads(line).get("loss") for line in f.metrics.read_text().splitlines()]
        for f in (one, two)
    ]
    assert losses[0][:6] == pytest.approx(losses[1][:6], rel=1e-4)


def test_training_from_a_server_gives_equal_losses(one_fold, tiny_shards, tmp_path):
    web = Web(tiny_shards.root)
    web.faults["fold3-00001.tar"] = [503, "cut"]
    command = ["train", "demo", "--fold", "2", "--name", "web", "--runs", str(tmp_path)]
    command += [f"data.shards={web.url}/", f"data.cache={tmp_path}/cache"]
    dfer(*command, *SMALL, *ONE_EPOCH)
    web.close()
    run = RunDir(tmp_path / "web")
    losses = [
        [json.loads(line).get("loss") for line in r.fold(2).metrics.read_text().splitlines()]
        for r in (one_fold[0], run)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 7
    ours, theirs = (read_json(r.fold(2).result) for r in (run, one_fold[0]))
    assert {k: v for k, v in ours.items() if k != "shuffled"} == {
        k: v for k, v in theirs.items() if k != "shuffled"
    }
    assert web.asked.pop("fold3-00001.tar") == 3
    assert web.asked.pop("index.json") >= 2
    assert set(web.asked.values()) == {1} and len(web.asked) == 29
    assert read_json(run.provenance)["data"]["shards"] == web.url


def test_metrics_file_has_a_line_a_step_and_one_of_the_test(one_fold):
    losses = [json.loads(line) for line in one_fold[0].fold(2).metrics.read_text().splitlines()]
    assert [line["step"] for line in losses] == [1, 2, 3, 4, 5, 6, 6]
    assert {
        "loss",
        "grad_norm",
        "lr_image",
        "lr_temporal",
        "lr_prompt",
        "clips_per_second",
        "data_wait_share",
    } <= losses[0].keys()
    assert "test_war" in losses[-1]


def test_log_of_rank_0_shows_progress_and_no_other_does(one_fold):
    fold = one_fold[1].fold(2)
    text = fold.log.read_text()
    start = "fold 2 of dfew: 48 training clips, 12 test clips; 2 x "
    assert f" {start}" in text
    assert "; ZeRO-1, fp32; batch 8 = 2 ranks x 2 clips x 2 micro batches; trained: " in text
    assert " step 6 of 6, epoch 1 of 1: loss " in text
    assert " epoch 1 of 1: " in text
    assert not fold.log_of(1).read_text()


def test_eval_gives_the_predictions_of_the_run(one_fold, tmp_path):
    fold = one_fold[1].fold(2)
    out = tmp_path / "p.parquet"
    text = dfer("eval", str(fold.checkpoints / "LATEST"), "--out", str(out))
    result = read_json(fold.result)
    table = read_predictions(fold.predictions, result["classes"])
    low, high = bootstrap_ci([(table.labels, table.logits)], len(result["classes"]), "uar")
    assert f"UAR {result['uar']:.2f} (95 % {low:.2f} to {high:.2f}), WAR " in text
    right, n = result["confusion"][0][0], result["support"]["happiness"]
    row = next(line for line in text.splitlines() if "happiness" in line)
    assert f" {right} of {n} " in row
    keys, logits = predictions(out)
    assert keys == predictions(fold.predictions)[0]
    assert close(logits, predictions(fold.predictions)[1], 1e-5)


def test_eval_with_another_model_is_refused_in_one_line(one_fold):
    text = dfer("eval", str(one_fold[1].fold(2).checkpoints), "model.temporal_layers=2", status=2)
    assert "is of another model" in text
    assert "Traceback" not in text


def test_eval_on_training_clips_is_refused(one_fold):
    text = dfer("eval", str(one_fold[1].fold(2).checkpoints), "--fold", "1", status=2)
    assert "fold 1 was among the training clips" in text


@pytest.fixture(scope="module")
def killed(tiny_shards, tmp_path_factory):
    """Train five folds in bf16 with two interruptions.

    The launcher is killed when fold 2 starts, and preempted in fold 2 on two ranks; a third command
    finishes on one rank.
    """
    runs = tmp_path_factory.mktemp("killed")
    settings = arguments(tiny_shards, runs)
    run = RunDir(runs / "demo")

    def crossval(nproc: int) -> list[str]:
        return ["crossval", "demo", "--nproc", str(nproc), *settings]

    launcher = Forked([DFER, *crossval(1)], os.environ, forks_ranks=True)
    wait_for(run.fold(2).status)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait(60)
    before = run.fold(1).result.stat().st_mtime_ns
    again = start_slow(*crossval(2))
    wait_for(run.fold(2).metrics, '"step": 4,')
    phase = read_json(run.fold(2).status)["phase"]
    again.send_signal(signal.SIGTERM)
    stopped = again.wait(120)
    at_leaving = read_json(run.fold(2).status) | {
        "result": run.fold(2).result.exists(),
        "code": stopped.returncode,
        "output": stopped.stdout + stopped.stderr,
    }
    text = dfer(*crossval(1))
    return {
        "run": run,
        "before": before,
        "text": text,
        "command": crossval(1),
        "left": at_leaving,
        "phase": phase,
    }


def test_finished_folds_are_kept_and_others_trained(killed):
    run = killed["run"]
    assert run.fold(1).result.stat().st_mtime_ns == killed["before"]
    assert killed["text"].count("done before") == 1
    summary = read_json(run.summary)
    assert summary["missing"] == []
    assert [r["fold"] for r in summary["folds"]] == [1, 2, 3, 4, 5]
    assert sum(n for r in summary["folds"] for n in r["support"].values()) == 60
    assert run.report.is_file()
    assert run.picture.is_file()


def test_output_says_what_is_trained_and_how_far_it_is(killed):
    lines = killed["text"].splitlines()
    assert lines[0] == (
        "Training DFER-CLIP (tiny, full fine-tuning) on dfew: 5 folds of 12 clips, "
        "1 rank on the CPU, bf16"
    )
    assert "\x1b" not in killed["text"]
    # lines of epochs, then the scores
    of_fold = [line for line in lines if line.startswith("fold 4: ")]
    epoch = re.compile(r"fold 4: [a-z ]+, step \d+ of 12, epoch [12] of 2\b.*")
    assert any(map(epoch.fullmatch, of_fold[:-1])), of_fold
    assert re.fullmatch(r"fold 4: UAR \S+ WAR \S+", of_fold[-1])
    assert len(set(of_fold)) == len(of_fold)
    assert killed["phase"] == "training"
    assert read_json(killed["run"].fold(4).status)["phase"] == ""


def test_preempted_fold_saves_and_resumes(killed):
    left, status = killed["left"], read_json(killed["run"].fold(2).status)
    if left["result"]:
        pytest.fail("fold 2 ended before the signal; make it longer")
    assert left["code"] == 75
    assert left["state"] == "PREEMPTED"
    assert "run the same command to resume" in left["output"]
    assert status["state"] == "DONE"
    assert len(status["attempts"]) >= 2
    steps = [
        json.loads(line)["step"] for line in killed["run"].fold(2).metrics.read_text().splitlines()
    ]
    # Each step once, then the test.
    assert steps == [*range(1, 13), 12]


def test_repeated_command_trains_nothing(killed):
    begin = time.monotonic()
    text = dfer(*killed["command"])
    assert text.count("done before") == 5
    assert time.monotonic() - begin < 30


def test_mlflow_has_the_parent_with_five_finished_children(killed):
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    run = killed["run"]
    tracking = tracking_of(run)
    api = MlflowClient(tracking.uri)
    parent = api.get_run(tracking.run_id)
    summary = read_json(run.summary)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["1_scores/war"] == pytest.approx(summary["war"]["mean"])
    cost = {k.removeprefix("3_cost/"): v for k, v in parent.data.metrics.items() if "cost" in k}
    assert 0 < cost["parameters_trained"] < cost["parameters"] == summary["cost"]["parameters"]
    assert cost["device_hours"] > 0
    # fold 2 was trained on other ranks than the others
    assert "ranks" not in cost and summary["cost"]["ranks"] == [1, 2]
    assert parent.data.params["train.global_batch"] == "8"
    children = api.search_runs(
        [tracking.experiment_id], f"tags.`mlflow.parentRunId` = '{tracking.run_id}'"
    )
    assert sorted(c.data.tags["fold"] for c in children) == ["1", "2", "3", "4", "5"]
    assert {c.info.status for c in children} == {"FINISHED"}
    for child in children:
        fold = run.fold(int(child.data.tags["fold"]))
        lines = [json.loads(line) for line in fold.metrics.read_text().splitlines()]
        on_server = {
            m.step: m.value for m in api.get_metric_history(child.info.run_id, "4_training/loss")
        }
        assert on_server == {line["step"]: line["loss"] for line in lines if "loss" in line}
        assert child.data.metrics["1_scores/test_war"] == pytest.approx(
            read_json(fold.result)["war"]
        )


def test_best_val_reports_its_best_epoch_and_pretrained_hash(tiny_shards, tmp_path):
    weights = tmp_path / "tiny.safetensors"
    save_file(build_clip(TINY, 64).state_dict(), weights)
    args = arguments(
        tiny_shards,
        tmp_path,
        "train.selection=best_val",
        "train.epochs=3",
        "tracking.enabled=false",
        "train.keep=1",
    )
    dfer("train", "demo", "--fold", "1", *args, f"model.pretrained={weights}")
    fold = RunDir(tmp_path / "demo").fold(1)
    result = read_json(fold.result)
    lines = [json.loads(line) for line in fold.metrics.read_text().splitlines()]
    scores = [line["val_war"] for line in lines if "val_war" in line]
    assert len(scores) == 3
    assert result["selection"] == "best_val"
    assert result["epoch"] == 1 + scores.index(max(scores))
    assert result["checkpoint"].endswith(f"step-{result['step']:08d}")
    assert result["pretrained_sha256"] == sha256_file(weights)
    state = read_json(fold.root / result["checkpoint"] / "state.json")
    assert state["pretrained_sha256"] == sha256_file(weights)
    text = dfer("eval", str(fold.checkpoints / "BEST"))
    assert f"WAR {result['war']:.2f}" in text
    assert f"Top-2 accuracy {result['top2']:.2f} (95 % " in text
    assert f"Cohen's kappa {result['kappa']:.3f} (95 % " in text
    table = read_predictions(fold.predictions, result["classes"])
    calibration = vars(score_calibration(Outputs.of(table.labels, table.logits)))
    assert result["calibration"] == calibration
    assert {lines[-1][f"test_{name}"] for name in calibration} == {*calibration.values()}
    check_temperature(fold, result["temperature"], tmp_path / "model")


def check_temperature(fold, temperature, out):
    """Check that it is fitted on the validation clips and that an exported model uses it."""
    saved, config, index = open_checkpoint(fold.checkpoints / "BEST", [])
    train = config.train
    clips = fold_clips(index, 1).train
    _, val = train_val_split(index, clips, train.val_fraction, train.seed)
    table = predict_here(load_model(saved, config, index.classes), config, index, val)
    fitted = fit_temperature(Outputs.of(table.labels, table.logits))
    assert temperature == pytest.approx(fitted, rel=0.02)
    export(fold.checkpoints / "BEST", out, [])
    model = load(out, device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8)
    scaled = np.exp(model.logits(frames) / temperature)
    expected = scaled / scaled.sum(1, keepdims=True)
    assert model.probabilities(frames) == pytest.approx(expected, rel=1e-4)
    assert f"Logits are divided by {temperature:.3f}" in (out / CARD).read_text()


def test_damaged_clips_stop_training_unless_allowed(tiny_source, tmp_path):
    from dfer_dist.data.packing.packer import pack
    from dfer_dist.data.sources.dfer_clip_lists import read_lists

    index = pack(
        read_lists("dfew", tiny_source / "frames", tiny_source / "lists"),
        "dfew",
        tmp_path / "shards",
        workers=1,
    )
    shard = index.path(index.train_shards(1)[0])
    data = bytearray(shard.read_bytes())
    row = index.sidecar(index.train_shards(1)[0]).to_pylist()[3]
    # Inside the last frame or the padding after it, and in the header.
    data[row["offset"] + row["size"] - 600] ^= 1
    data[row["offset"] + 10] ^= 1
    shard.write_bytes(data)
    args = [
        *arguments(
            index, tmp_path, "train.epochs=1", "tracking.enabled=false", "train.global_batch=6"
        )
    ]
    text = dfer("train", "demo", "--fold", "1", *args, status=2)
    assert "1 training clips are damaged" in text
    assert row["key"] in RunDir(tmp_path / "demo").fold(1).log.read_text()
    missing = index.train_shards(1)[1]
    index.path(missing).unlink()
    lost = 1 + index.shards[missing].clips
    text = dfer(
        "train",
        "demo",
        "--fold",
        "1",
        "--name",
        "gone",
        *args,
        f"data.loss_budget={lost - 2}",
        status=2,
    )
    assert (
        f"{index.path(missing).name} is missing: copy it again; {lost - 1} clips would be lost, "
        f"data.loss_budget={lost - 2}" in text
    )
    # Two epochs lose the same clips; each clip counts once.
    dfer(
        "train",
        "demo",
        "--fold",
        "1",
        "--name",
        "allowed",
        *args,
        f"data.loss_budget={lost}",
        "train.epochs=2",
    )
    fold = RunDir(tmp_path / "allowed").fold(1)
    assert read_json(fold.result)["lost_clips"] == lost
    counts = [
        json.loads(line)["lost_clips"]
        for line in fold.metrics.read_text().splitlines()
        if "lost_clips" in line
    ]
    assert counts == sorted(counts) and counts[-1] == lost
    for key in index.sidecar(missing)["key"].to_pylist():
        assert f"lost: shard {index.path(missing).name}, clip {key}: " in fold.log.read_text()
    fold_of_it = index.shards[missing].split[-1]
    text = dfer(
        "train",
        "demo",
        "--fold",
        fold_of_it,
        "--name",
        "test",
        *args,
        f"data.loss_budget={lost}",
        status=2,
    )
    assert (
        f"{index.path(missing).name} is missing: copy it again; {lost - 1} clips would be lost, "
        "a test may lose none" in text
    )
