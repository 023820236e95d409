"""The command table, its help, and errors of the command line."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError
from typer.main import get_command

from dfer_dist.config.load import find_config
from dfer_dist.data.shards.index import Index
from launch.cli import COMMANDS, app
from launch.console import user_message
from tests.helpers.cli import check_refusal, invoke

LINES = get_command(app).commands  # type: ignore[attr-defined]
LOADED = {name: line.load() for name, line in LINES.items()}
PANELS = ("Data", "Training", "Cluster", "Results", "Models", "Tools")


def test_help_lists_each_command_in_a_panel(tmp_path: Path) -> None:
    done = invoke("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert tuple(COMMANDS) == PANELS
    lines = done.stdout.splitlines()
    for panel, entries in COMMANDS.items():
        start = next(i for i, line in enumerate(lines) if f" {panel} " in line)
        listed = lines[start + 1 : start + 1 + len(entries)]
        for line, (name, entry) in zip(listed, entries.items(), strict=True):
            assert line.split()[1] == name
            assert entry.summary in line
    assert "--install-completion" in done.stdout


@pytest.mark.parametrize("name", LINES)
def test_summary_is_the_first_sentence_of_the_help(name: str) -> None:
    assert LOADED[name].help.partition("\n\n")[0] == LINES[name].entry.summary


@pytest.mark.parametrize("name", LINES)
def test_help_of_command_has_an_example(name: str, tmp_path: Path) -> None:
    done = invoke(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"Example: dfer {name}" in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", LINES)
def test_example_of_command_parses(name: str) -> None:
    command = LOADED[name]
    example = command.help.partition("[bold]dfer ")[2].partition("[/bold]")[0]
    first, *rest = shlex.split(example)
    assert first == name
    context = command.make_context(name, rest)
    if "experiment" in context.params:
        assert find_config(context.params["experiment"]).is_file()


@pytest.mark.parametrize("name", LINES)
def test_every_option_has_a_help_sentence(name: str) -> None:
    """Sentences start with a capital letter or a name, and end with a full stop."""
    commands = [LOADED[name], *getattr(LOADED[name], "commands", {}).values()]
    for parameter in [p for command in commands for p in command.params]:
        assert parameter.help, parameter.name
        assert parameter.help.endswith((".", ")")), parameter.help


@pytest.mark.parametrize(
    "arguments",
    [
        ["crossval"],
        ["train", "demo"],
        ["nonsense"],
        ["crossval", "demo", "--nproc", "0"],
        ["crossval", "demo", "--what"],
    ],
)
def test_usage_error_has_status_2(arguments: list[str], tmp_path: Path) -> None:
    done = invoke(*arguments, cwd=tmp_path)
    check_refusal(done, "try --help")
    assert os.listdir(tmp_path) == []


def test_misspelt_command_is_suggested(tmp_path: Path) -> None:
    check_refusal(invoke("crosval", cwd=tmp_path), "No such command", "Did you mean 'crossval'")


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": (
        ["crossval", "demo", "train.epoch=3"],
        ["unknown key 'train.epoch'", "did you mean 'train.epochs'?"],
    ),
    "wrong type": (["crossval", "demo", "train.epochs=many"], ["train.epochs", "many"]),
    "unknown experiment": (["crossval", "demmo", "SHARDS"], ["did you mean 'demo'?"]),
    "class without a text": (
        ["crossval", "demo", "SHARDS", "model.sentences.fear=[wide eyes]"],
        ["nothing for class 'happiness'", "add model.sentences.happiness=[TEXT]"],
    ),
    "fold out of range": (
        ["crossval", "demo", "SHARDS", "--folds", "1,6"],
        ["fold 6 is out of range", "1 to 5"],
    ),
    "fold of train": (
        ["train", "demo", "SHARDS", "--fold", "0"],
        ["fold 0 is out of range", "1 to 5"],
    ),
    "ranks": (
        ["crossval", "demo", "SHARDS", "train.global_batch=8", "--nproc", "3"],
        ["global_batch=8 cannot be shared by 3 ranks"],
    ),
    "micro batch": (
        ["train", "demo", "SHARDS", "train.global_batch=8", "train.micro_batch=3", "--fold", "1"],
        ["train.micro_batch=3"],
    ),
    "name": (["crossval", "demo", "SHARDS", "--name", "../x"], ["--name '../x'"]),
    "folder that is a file": (
        ["crossval", "demo", "SHARDS", "tracking.enabled=false", "--runs", "file"],
        ["file"],
    ),
    "no shards": (
        ["crossval", "demo", "data.shards=empty"],
        ["empty holds no index.json", "dfer pack"],
    ),
    "pack nothing": (
        ["pack", "--dataset", "dfew", "--root", "empty", "--lists", "empty", "--out", "out"],
        ["empty"],
    ),
    "report": (["report", "empty"], ["empty is not a run"]),
    "cluster option": (
        ["crossval", "demo", "SHARDS", "--max-parallel", "2"],
        ["--max-parallel is for a cluster", "--cluster NAME"],
    ),
    "local option": (
        ["crossval", "demo", "SHARDS", "--cluster", "local-slurm", "--nproc", "2"],
        ["--nproc and --max-minutes are for this machine", "cluster.nodes"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistake_is_one_line_and_creates_nothing(
    case: str, tmp_path: Path, tiny_shards: Index
) -> None:
    given, parts = REFUSED[case]
    given = [word.replace("SHARDS", f"data.shards={tiny_shards.root}") for word in given]
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    check_refusal(invoke(*given, cwd=tmp_path), *parts)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"]
    assert os.listdir(tmp_path / "empty") == []


@pytest.mark.parametrize(
    "case", ["unknown key", "fold out of range", "folder that is a file", "report"]
)
def test_debug_shows_the_traceback(case: str, tmp_path: Path, tiny_shards: Index) -> None:
    given = [w.replace("SHARDS", f"data.shards={tiny_shards.root}") for w in REFUSED[case][0]]
    (tmp_path / "file").write_text("mine")
    done = invoke(*given, "--debug", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("Traceback (most recent call last):")


def test_missing_dependency_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "launch.slurm.status", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert user_message(missing("mlflow")) == (
        "mlflow is not installed: run pip install 'dfer_dist[train]'"
    )
    # a module of our own is a fault of the program
    assert user_message(missing("launch.slurm.status")) is None
    done = invoke("status", cwd=tmp_path)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def missing(module: str) -> ModuleNotFoundError:
    """Return the error of importing a module that is not installed."""
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(module)
    return caught.value


def test_eval_refuses_a_folder_without_checkpoint(tmp_path: Path) -> None:
    check_refusal(invoke("eval", tmp_path, cwd=tmp_path), f"{tmp_path} is no complete checkpoint")


def test_path_in_other_bytes_is_named() -> None:
    with pytest.raises(UnicodeEncodeError) as e:
        os.fsdecode(b"runs/caf\xe9/x.json").encode()
    message = r"'runs/caf\udce9/x.json' is no UTF-8: choose another name for what is written"
    assert user_message(e.value) == message


def test_full_disk_of_a_library_is_one_line() -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert user_message(SafetensorError(text)) == text
    assert user_message(ValueError("a fault of the program")) is None


def test_full_disk_while_a_folder_is_copied_is_one_short_line(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    for i in range(200):
        (tmp_path / "from" / f"{i}.py").touch()

    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device", target)

    with pytest.raises(shutil.Error) as e:
        shutil.copytree(tmp_path / "from", tmp_path / "to", copy_function=full)
    message = user_message(e.value)
    assert message and message.startswith("200 files cannot be copied, such as ")
    assert "No space left on device" in message and len(message) < 400
    single = shutil.Error("Destination path already exists")
    assert user_message(single) == "Destination path already exists"
