"""Descriptions of runs and experiments in MLflow, without a server."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfer_dist.config.applicable import applicable_settings
from dfer_dist.config.load import dump_config, read_config
from dfer_dist.config.schema import Config
from dfer_dist.reporting.results import load_run
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import METRICS
from dfer_dist.runs.summary import RunCost, Summary
from dfer_dist.tracking.metric_names import CURRENT
from dfer_dist.tracking.mlflow_runs import run_tags
from dfer_dist.tracking.notes import describe_experiment, describe_run, is_signed, run_text
from dfer_dist.utils.files import read_json, write_json
from tests.helpers.made_runs import make_run

NOTE = "mlflow.note.content"
VIEW = "mlflow.sharedViewState.scores"


class Server:
    """Keeps the tags of a run and of an experiment."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}

    @property
    def run(self) -> Any:
        data, info = SimpleNamespace(tags=self.tags), SimpleNamespace(run_id="parent")
        return SimpleNamespace(info=info, data=data)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.tags[key] = value

    def get_experiment(self, experiment_id: str) -> Any:
        return SimpleNamespace(tags=dict(self.tags))

    set_experiment_tag = set_tag


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("runs") / "made", (1, 2))
    command = ["/home/me/bin/dfer", "crossval", "demo", "data.shards=/place/my shards"]
    write_json(run.provenance, read_json(run.provenance) | {"command": command})
    return run


@pytest.fixture(scope="module")
def summary(run: RunDir) -> Summary:
    return load_run(run).summary


def test_text_of_a_run_has_scores_folds_cost_and_command(run: RunDir, summary: Summary) -> None:
    cost = RunCost(87_456_000, 123.45, 2**31, ranks=[2], device_hours=1.234)
    text = run_text(run, replace(summary, cost=cost))
    low, high = summary.uar.ci95
    mean = f"{summary.uar.mean:.2f} ± {summary.uar.std:.2f} (95 % {low:.2f} to {high:.2f})"
    assert text.startswith(f"**UAR {mean}, WAR ")
    assert "2 of 3 folds of DFEW" in text
    assert (
        "Backbone ViT-B-32-quickgelu, image tower trained: all; 2 ranks; 87.46 million parameters "
        "trained; 123.5 clips/s; peak memory of a rank 2.00 GiB; 1.23 device hours\n" in text
    )
    for r in summary.folds:
        assert f"| {r.fold} | {r.n} | {r.uar:.2f} | {r.war:.2f} |\n" in text
    assert text.endswith("```bash\ndfer crossval demo 'data.shards=/place/my shards'\n```")


def test_text_of_a_run_without_cost_or_deviation(run: RunDir, summary: Summary) -> None:
    one = replace(summary, uar=replace(summary.uar, std=None), cost=None)
    text = run_text(run, one)
    assert "±" not in text.partition(", WAR")[0]
    assert "Backbone ViT-B-32-quickgelu, image tower trained: all\n" in text
    alone = RunCost(None, None, None, ranks=[1])
    assert "; 1 rank\n" in run_text(run, replace(summary, cost=alone))


def test_description_follows_the_summary_until_somebody_edits_it(
    run: RunDir, summary: Summary, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    assert describe_run(run, server, server.run, summary)
    assert is_signed(server.tags[NOTE]) and len(server.tags[NOTE]) < 5000
    assert not describe_run(run, server, server.run, summary)
    other = replace(summary, missing=[])
    assert describe_run(run, server, server.run, other)
    assert "2 of 2 folds" in server.tags[NOTE]
    for edited in (server.tags[NOTE].replace("UAR", "recall"), "mine", ""):
        server.tags[NOTE] = edited
        caplog.clear()
        with caplog.at_level("INFO"):
            assert not describe_run(run, server, server.run, summary)
        assert server.tags[NOTE] == edited and "edited there and is kept" in caplog.text


def test_experiment_gets_a_description_and_a_view_of_metrics_that_exist() -> None:
    server = Server()
    describe_experiment(server, "1")
    names = re.findall(r"`(\d_\w+/\w+)`", server.tags[NOTE])
    assert len(names) > 4
    view = json.loads(server.tags[VIEW])
    state = json.loads(view["state"])
    metrics = re.findall(r"metrics\.`(.+?)`", str(state["selectedColumns"]))
    known = {
        CURRENT.of(f"{score}_{kind}")
        for score in METRICS
        for kind in ("mean", "ci95_low", "ci95_high", "shuffled")
    } | {CURRENT.of("test_uar"), CURRENT.of("ranks"), CURRENT.of("trained_parameters")}
    assert {*names, *metrics} <= known
    assert view["name"] in server.tags[NOTE]


def test_own_description_and_view_of_an_experiment_are_kept() -> None:
    server = Server()
    describe_experiment(server, "1")
    own = {NOTE: f"{server.tags[NOTE]} and more", VIEW: "{}"}
    server.tags = dict(own)
    describe_experiment(server, "1")
    assert server.tags == own


def test_tags_have_the_hash_of_other_folds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert "folds_hash" not in run_tags(run)
    config = read_config(run.config)
    config.data.folds, config.data.folds_hash = str(run.folds), "f" * 64
    run.config.write_text(dump_config(config))
    assert run_tags(run)["folds_hash"] == "f" * 64
    settings = applicable_settings(config)
    assert settings["data.folds_hash"] == "f" * 64
    assert "data.folds_hash" not in applicable_settings(Config())
