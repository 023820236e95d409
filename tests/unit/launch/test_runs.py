"""Creating a run's folder, and finding the one to resume."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfer_dist.config.load import read_config
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import Provenance
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json
from launch import runs
from launch.commands import train
from launch.locks import fold_lock
from launch.runs import open_run
from tests.helpers.cli import check_refusal, invoke, small_run
from tests.helpers.data.folds import fold_overlay

# asking for the processor starts a process the first time
platform.platform()

ENGINE = Path("dfer_dist") / "training" / "engine.py"
FILES = {"config.yaml", "provenance.json", "run.json", "environment.txt", "code"}


@pytest.fixture(autouse=True)
def without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking git for the commit would start a process."""
    monkeypatch.setattr("dfer_dist.runs.provenance.checkout", lambda: None)


@pytest.fixture
def settings(tiny_shards: Index) -> list[str]:
    return small_run(tiny_shards)


@pytest.fixture
def open_demo(tmp_path: Path, settings: list[str]) -> Callable[..., tuple[RunDir, list[int]]]:
    """Open the run ``demo``, with more settings."""

    def open_(
        *more: str, allow: tuple[str, ...] = (), folds: str | None = None, ranks: int = 1
    ) -> tuple[RunDir, list[int]]:
        return open_run(tmp_path / "runs", None, "demo", [*settings, *more], allow, folds, ranks)

    return open_


@pytest.fixture
def run(open_demo: Callable[..., Any]) -> RunDir:
    """A run without trained folds."""
    opened: RunDir = open_demo()[0]
    return opened


def make_older(run: RunDir) -> None:
    """Make as if a run had been created by other code."""
    write_json(run.provenance, read_json(run.provenance) | {"code_hash": "0" * 16})
    (run.code / ENGINE).write_text("# as it was then")


def test_new_run_has_its_files(run: RunDir, tiny_shards: Index) -> None:
    assert {p.name for p in run.root.iterdir()} == FILES
    info = run.info()
    assert (info.folds, info.dataset) == ([1, 2, 3, 4, 5], "dfew")
    assert info.index_hash == tiny_shards.hash
    assert read_json(run.provenance)["data"]["hash"] == tiny_shards.hash
    assert Path(read_config(run.config).data.shards).is_absolute()


def test_resume_trains_the_folds_that_were_asked_for(
    open_demo: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = open_demo(folds="4")
    open_demo(folds="1-2")
    asked: list[list[int]] = []
    monkeypatch.setattr(train, "_cross_validate", lambda run, folds, ranks: asked.append(folds))
    assert invoke("resume", run.root, cwd=tmp_path).returncode == 0
    # a run of an earlier version
    run.update_info(requested=[])
    open_demo(folds="3")
    assert invoke("resume", run.root, cwd=tmp_path).returncode == 0
    assert asked == [[1, 2, 4], [1, 2, 3, 4, 5]]


def test_signature_of_a_url_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["dfer", "train", "demo", "data.shards=https://h/x?sig=secret", "--name", "why?"]
    monkeypatch.setattr("sys.argv", command)
    expected = ["dfer", "train", "demo", "data.shards=https://h/x?…", "--name", "why?"]
    assert runs.command_line() == expected


@pytest.mark.parametrize(
    ("variables", "settings_of_it", "said"),
    [
        ({"URI": "http://h:5000", "NAME": "mine"}, [], "URI=http://h:5000, NAME=mine"),
        ({"ID": "7"}, [], "ID=7"),
        ({"NAME": "mine", "ID": "7"}, [], "NAME=mine"),
        (
            {"URI": "http://h:5000", "NAME": "mine"},
            ["tracking.experiment=own"],
            "URI=http://h:5000",
        ),
        ({"NAME": "mine"}, ["tracking.experiment=own"], ""),
        ({"URI": "http://h:5000"}, ["tracking.enabled=false"], ""),
    ],
)
def test_variables_of_mlflow_that_count_are_said(
    open_demo: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    settings_of_it: list[str],
    said: str,
) -> None:
    names = {
        "URI": "MLFLOW_TRACKING_URI",
        "NAME": "MLFLOW_EXPERIMENT_NAME",
        "ID": "MLFLOW_EXPERIMENT_ID",
    }
    for short, value in variables.items():
        monkeypatch.setenv(names[short], value)
    open_demo("tracking.enabled=true", *settings_of_it)
    for short, name in names.items():
        said = said.replace(f"{short}=", f"{name}=")
    line = f"MLflow: using {said} of the environment\n" if said else ""
    assert capsys.readouterr().out == line


def test_folds_are_those_asked_for(open_demo: Callable[..., Any]) -> None:
    assert open_demo(folds="4,1-2")[1] == [1, 2, 4]
    assert open_demo()[1] == [1, 2, 3, 4, 5]


def test_folder_of_other_files_is_refused(tmp_path: Path, settings: list[str]) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "thesis.tex").write_text("x")
    done = invoke("crossval", "demo", *settings, cwd=tmp_path)
    check_refusal(done, "is not empty and holds no run")
    assert os.listdir(tmp_path / "runs" / "demo") == ["thesis.tex"]


@pytest.mark.parametrize("name", ["12:30", "two\nlines", "a\\b"])
def test_folder_that_jobs_cannot_use_is_refused(
    tmp_path: Path, settings: list[str], name: str
) -> None:
    done = invoke("crossval", "demo", *settings, "--name", name, cwd=tmp_path)
    check_refusal(done, "ranks cannot use a path with", "choose another --runs or --name")
    assert not (tmp_path / "runs" / name).exists()


def test_resume_names_changed_settings(
    run: RunDir, settings: list[str], tmp_path: Path, open_demo: Callable[..., Any]
) -> None:
    done = invoke("crossval", "demo", *settings, "train.seed=7", cwd=tmp_path)
    check_refusal(done, "belongs to another run", "train.seed was 0, now 7", "--allow-drift")
    with pytest.raises(UserError, match=r"tracking\.enabled was False, now True"):
        open_demo("tracking.enabled=true")
    assert read_config(run.config).train.seed == 0


def test_resume_applies_settings_without_effect_on_results(
    run: RunDir, open_demo: Callable[..., Any]
) -> None:
    again, _ = open_demo("data.workers=3", "train.micro_batch=2", folds="1", ranks=2)
    config = read_config(again.config)
    assert (again, config.data.workers, config.train.micro_batch) == (run, 3, 2)


def test_resume_refuses_other_data(run: RunDir, open_demo: Callable[..., Any]) -> None:
    run.update_info(index_hash="0" * 64)
    with pytest.raises(UserError, match=r"index_hash was 000000000000, now"):
        open_demo()


def test_resume_names_other_code_and_libraries(
    run: RunDir, settings: list[str], tmp_path: Path, open_demo: Callable[..., Any]
) -> None:
    provenance = read_json(run.provenance)
    provenance["versions"] |= {"torch": "1.0"}
    write_json(run.provenance, provenance | {"code_hash": "0" * 16})
    with (run.code / ENGINE).open("a") as f:
        f.write("# as it was then\n")
    done = invoke("crossval", "demo", *settings, cwd=tmp_path)
    check_refusal(done, "code was 0000000000000000, now", f"({ENGINE})")
    check_refusal(done, "versions.torch was 1.0, now 2")
    with pytest.raises(UserError, match=r"versions\.torch"):
        open_demo(folds="1", allow=("code",))
    # with nothing left to do, code does not matter
    run.fold(1).root.mkdir()
    run.fold(1).result.write_text("{}")
    open_demo(folds="1")
    with pytest.raises(UserError, match=r"versions\.torch"):
        open_demo(allow=("code",))


def test_allowed_drift_is_applied_and_recorded(run: RunDir, open_demo: Callable[..., Any]) -> None:
    make_older(run)
    new = ("optim.lr_image=2e-5", "optim.gamma=0.5")
    with pytest.raises(UserError, match=r"optim\.gamma was 0\.1, now 0\.5"):
        open_demo(*new, allow=("optim.lr_image", "code"))
    open_demo(*new, allow=("optim", "code"))
    (drift,) = run.info().drift
    assert drift.changes.keys() == {"optim.lr_image", "optim.gamma", "code"}
    assert drift.changes["optim.gamma"] == [0.1, 0.5]
    assert read_config(run.config).optim.gamma == 0.5
    assert (run.root / "code-1" / ENGINE).read_text() == "# as it was then"
    assert len((run.code / ENGINE).read_text()) > 1000
    assert read_json(run.root / "provenance-1.json")["code_hash"] == "0" * 16
    # from now on this is the run
    open_demo(*new)
    with pytest.raises(UserError, match=r"tracking\.enabled was False"):
        open_demo(*new, "tracking.enabled=true", allow=("tracking",))


@pytest.mark.parametrize("write", range(7))
def test_interrupted_drift_is_applied_by_the_next_command(
    run: RunDir, open_demo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    make_older(run)
    lock = run.environment.read_text()
    run.environment.write_text("torch==1.0")
    calls = 0

    def interrupted(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **more: object) -> None:
            nonlocal calls
            calls += 1
            if calls == write + 1:
                raise KeyboardInterrupt
            function(*args, **more)

        return call

    def open_again() -> None:
        open_demo("optim.gamma=0.5", allow=("optim", "code"))

    with monkeypatch.context() as patch:
        for owner, name in (
            (runs, "snapshot_code"),
            (runs, "write_text"),
            (RunDir, "update_info"),
            (Provenance, "write"),
        ):
            patch.setattr(owner, name, interrupted(getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            open_again()
    open_again()
    assert {key for drift in run.info().drift for key in drift.changes} == {"optim.gamma", "code"}
    assert read_config(run.config).optim.gamma == 0.5
    old = [(folder / ENGINE).read_text() for folder in run.root.glob("code-*")]
    assert old.count("# as it was then") == 1
    assert len((run.code / ENGINE).read_text()) > 1000
    assert any(read_json(f)["code_hash"] == "0" * 16 for f in run.root.glob("provenance-*.json"))
    assert run.environment.read_text() == lock
    assert any(f.read_text() == "torch==1.0" for f in run.root.glob("environment-*.txt"))
    open_again()


def test_interrupted_start_leaves_the_name_free(
    tmp_path: Path, open_demo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(target: Path) -> None:
        target.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("launch.runs.snapshot_code", stop)
        with pytest.raises(KeyboardInterrupt):
            open_demo()
    assert os.listdir(tmp_path / "runs") == []
    open_demo()


def test_refused_settings_change_nothing_for_a_running_fold(
    run: RunDir, open_demo: Callable[..., Any]
) -> None:
    before = run.config.read_text()
    with fold_lock(run.fold(3)):
        with pytest.raises(UserError, match=r"another command is working on .*fold-3"):
            open_demo("optim.gamma=0.5", allow=("optim",), folds="1")
        with pytest.raises(UserError, match=r"another command is working on .*fold-3"):
            open_demo("train.micro_batch=2", folds="1")
        # another fold, with the same settings
        open_demo(folds="1")
    assert run.config.read_text() == before
    assert not run.info().drift


def test_second_command_on_a_fold_is_refused(
    run: RunDir, settings: list[str], tmp_path: Path
) -> None:
    with fold_lock(run.fold(1)):
        done = invoke("train", "demo", "--fold", "1", *settings, cwd=tmp_path)
    check_refusal(done, "another command is working on")


def test_run_keeps_to_its_folds(
    run: RunDir, tiny_shards: Index, tmp_path: Path, settings: list[str]
) -> None:
    file = tmp_path / "by.json"
    overlay = fold_overlay(tiny_shards, 3)
    overlay.write(file)

    def open_(name: str, *more: str, allow: tuple[str, ...] = ()) -> tuple[RunDir, list[int]]:
        return open_run(tmp_path / "runs", name, "demo", [*settings, *more], allow, None, 1)

    other, folds = open_("other", f"data.folds={file}")
    config = read_config(other.config)
    assert (folds, other.info().folds) == ([1, 2, 3], [1, 2, 3])
    assert (config.data.folds, config.data.folds_hash) == (str(other.folds), overlay.hash)
    assert other.folds.read_bytes() == file.read_bytes()
    assert other.info().config_hash != run.info().config_hash
    assert open_("other", f"data.folds={file}")[0] == other
    assert read_config(other.config) == config
    # the same file with other content
    fold_overlay(tiny_shards, 3, shift=1).write(file)
    with pytest.raises(UserError, match=rf"data\.folds_hash was {overlay.hash}, now .* folds are"):
        open_("other", f"data.folds={file}", allow=("data.folds_hash",))
    with pytest.raises(UserError, match=r"data\.folds_hash was .*, now None"):
        open_("other")
    assert other.folds.exists() and read_config(other.config) == config
    FoldOverlay("x", "dfew", "0", "file", 3, overlay.fold_of).signed().write(file)
    with pytest.raises(UserError, match="is of another set"):
        open_("third", f"data.folds={file}")
    with pytest.raises(UserError, match=r"data\.folds_hash is the hash of data\.folds"):
        open_("third", "data.folds_hash=abc")
    assert not (tmp_path / "runs" / "third").exists()
