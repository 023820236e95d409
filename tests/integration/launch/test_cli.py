from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

from dfer_dist.config.load import find_config, read_config
from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json
from launch import processes, runs
from launch.cli import app
from launch.locks import fold_lock
from launch.runs import open_run
from tests.helpers.cli import DFER, check_refusal, dfer

COMMANDS = {
    name: command.load()
    for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
}


@pytest.fixture
def words(tiny_shards: Index) -> list[str]:
    return [f"data.shards={tiny_shards.root}", "tracking.enabled=false", "train.global_batch=8"]


@pytest.fixture
def run(tmp_path: Path, words: list[str]) -> RunDir:
    """A run that no fold has been trained of."""
    return open_run(tmp_path / "runs", None, "demo", words, (), None, 1)[0]


def test_help_is_quick(tmp_path: Path) -> None:
    """At most twice the processor time that Typer itself takes for two commands, in one of seven turns: a slow moment slows both."""
    plain = tmp_path / "plain.py"
    plain.write_text(
        "import typer\napp = typer.Typer(add_completion=False, rich_markup_mode='rich', pretty_exceptions_enable=False)\n"
        "app.command('a')(lambda: None)\napp.command('b')(lambda: None)\napp()\n"
    )
    ratios = [
        spent([str(DFER), "--help"]) / spent([sys.executable, str(plain), "--help"])
        for _ in range(7)
    ]
    assert min(ratios) < 2


def spent(words: list[str]) -> float:
    """Seconds of processor time of a command whose output nobody reads."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    _, status, usage = os.wait4(os.posix_spawn(words[0], words, os.environ, file_actions=quiet), 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime


def test_help_and_a_refused_setting_import_no_torch(tmp_path: Path) -> None:
    for argv, unread in (
        (["dfer", "--help"], {"torch", "omegaconf"}),
        (["dfer", "crossval", "demo", "train.epoch=3"], {"torch"}),
    ):
        code = f"import sys\nsys.argv = {argv!r}\nfrom launch.cli import main\ntry:\n    main()\nfinally:\n    print({unread!r} & set(sys.modules))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.stdout.splitlines()[-1] == "set()", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_an_example(name: str, tmp_path: Path) -> None:
    done = dfer(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"Example: dfer {name}" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands_that_parse(name: str) -> None:
    command = COMMANDS[name]
    example = command.help.partition("[bold]dfer ")[2].partition("[/bold]")[0]
    first, *rest = shlex.split(example)
    assert first == name
    context = command.make_context(name, rest)
    if "experiment" in context.params:
        assert find_config(context.params["experiment"]).is_file()


def test_usage_errors_have_status_2(tmp_path: Path) -> None:
    for bad in (
        ["crossval"],
        ["train", "demo"],
        ["nonsense"],
        ["crossval", "demo", "--nproc", "0"],
        ["crossval", "demo", "--what"],
    ):
        done = dfer(*bad, cwd=tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": (
        ["crossval", "demo", "train.epoch=3"],
        ["unknown key 'train.epoch'", "did you mean 'train.epochs'?"],
    ),
    "wrong type": (["crossval", "demo", "train.epochs=many"], ["train.epochs", "many"]),
    "unknown experiment": (["crossval", "demmo", "SHARDS"], ["did you mean 'demo'?"]),
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
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_line_and_make_nothing(
    case: str, tmp_path: Path, tiny_shards: Index
) -> None:
    given, parts = REFUSED[case]
    given = [w.replace("SHARDS", f"data.shards={tiny_shards.root}") for w in given]
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    check_refusal(dfer(*given, cwd=tmp_path), *parts)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"]
    assert os.listdir(tmp_path / "empty") == []


@pytest.mark.parametrize(
    "case", ["unknown key", "fold out of range", "folder that is a file", "report"]
)
def test_debug_shows_the_traceback(case: str, tmp_path: Path, tiny_shards: Index) -> None:
    given = [w.replace("SHARDS", f"data.shards={tiny_shards.root}") for w in REFUSED[case][0]]
    (tmp_path / "file").write_text("mine")
    done = dfer(*given, "--debug", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("Traceback (most recent call last):")


def test_eval_of_what_is_no_checkpoint(tmp_path: Path) -> None:
    check_refusal(dfer("eval", tmp_path, cwd=tmp_path), f"{tmp_path} is no complete checkpoint")


def test_weights_that_are_missing(tmp_path: Path, tiny_shards: Index) -> None:
    """From a real rank, which must not try the network."""
    given = [
        "train",
        "dfew_vitb32",
        "--fold",
        "1",
        f"data.shards={tiny_shards.root}",
        "tracking.enabled=false",
    ]
    done = dfer(*given, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"))
    check_refusal(
        done,
        "ViT-B-32-quickgelu are not on this machine",
        "dfer fetch-weights ViT-B-32-quickgelu openai",
    )
    status = read_json(RunDir(tmp_path / "runs" / "dfew_vitb32").fold(1).status)
    assert status["state"] == "FAILED"
    assert "fetch-weights" in status["attempts"][0]["why"]


def test_new_run(run: RunDir, words: list[str], tiny_shards: Index) -> None:
    assert {p.name for p in run.root.iterdir()} == {
        "config.yaml",
        "provenance.json",
        "run.json",
        "environment.txt",
        "code",
    }
    about = run.describe()
    assert (about["folds"], about["dataset"], about["index_hash"]) == (
        [1, 2, 3, 4, 5],
        "dfew",
        tiny_shards.hash,
    )
    assert read_json(run.provenance)["data"]["hash"] == tiny_shards.hash
    assert Path(read_config(run.config).data.shards).is_absolute()


def test_folds_are_those_asked_for(tmp_path: Path, words: list[str]) -> None:
    assert open_run(tmp_path, "a", "demo", words, (), "4,1-2", 1)[1] == [1, 2, 4]
    assert open_run(tmp_path, "b", "demo", words, (), None, 1)[1] == [1, 2, 3, 4, 5]


def test_folder_of_other_files_is_not_written_to(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "thesis.tex").write_text("x")
    check_refusal(dfer("crossval", "demo", *words, cwd=tmp_path), "is not empty and holds no run")
    assert os.listdir(tmp_path / "runs" / "demo") == ["thesis.tex"]


def test_resume_with_other_settings_names_them(
    run: RunDir, words: list[str], tmp_path: Path
) -> None:
    done = dfer("crossval", "demo", *words, "train.seed=7", cwd=tmp_path)
    check_refusal(done, "belongs to another run", "train.seed was 0, now 7", "--allow-drift")
    with pytest.raises(UserError, match=r"tracking\.enabled was False, now True"):
        open_run(tmp_path / "runs", None, "demo", [*words, "tracking.enabled=true"], (), None, 1)
    assert read_config(run.config).train.seed == 0


def test_resume_takes_over_settings_that_change_no_result(
    run: RunDir, words: list[str], tmp_path: Path
) -> None:
    again, _ = open_run(
        tmp_path / "runs",
        None,
        "demo",
        [*words, "data.workers=3", "train.micro_batch=2"],
        (),
        "1",
        2,
    )
    config = read_config(again.config)
    assert (again, config.data.workers, config.train.micro_batch) == (run, 3, 2)


def test_resume_with_other_data(run: RunDir, words: list[str], tmp_path: Path) -> None:
    write_json(run.run, {**run.describe(), "index_hash": "0" * 64})
    with pytest.raises(UserError, match=r"index_hash was 000000000000, now"):
        open_run(tmp_path / "runs", None, "demo", words, (), None, 1)


def test_other_code_or_libraries_are_named(run: RunDir, words: list[str], tmp_path: Path) -> None:
    provenance = read_json(run.provenance)
    provenance["versions"] |= {"torch": "1.0"}
    write_json(run.provenance, provenance | {"code_hash": "0" * 16})
    with (run.code / "dfer_dist" / "training" / "engine.py").open("a") as f:
        f.write("# as it was then\n")
    done = dfer("crossval", "demo", *words, cwd=tmp_path)
    check_refusal(
        done,
        "code was 0000000000000000, now",
        "(dfer_dist/training/engine.py)",
        "versions.torch was 1.0, now 2",
    )
    run.fold(1).root.mkdir()
    run.fold(1).result.write_text("{}")
    open_run(
        tmp_path / "runs", None, "demo", words, (), "1", 1
    )  # with nothing left to do, code does not matter
    with pytest.raises(UserError, match=r"versions\.torch"):
        open_run(tmp_path / "runs", None, "demo", words, ("code",), None, 1)


def test_allowed_drift_is_taken_over_and_kept_on_record(
    run: RunDir, words: list[str], tmp_path: Path
) -> None:
    write_json(run.provenance, read_json(run.provenance) | {"code_hash": "0" * 16})
    (run.code / "dfer_dist" / "training" / "engine.py").write_text("# as it was then")
    new = [*words, "optim.lr_image=2e-5", "optim.gamma=0.5"]
    with pytest.raises(UserError, match=r"optim\.gamma was 0\.1, now 0\.5"):
        open_run(tmp_path / "runs", None, "demo", new, ("optim.lr_image", "code"), None, 1)
    open_run(tmp_path / "runs", None, "demo", new, ("optim", "code"), None, 1)
    (drift,) = run.drifts()
    assert drift["changes"].keys() == {"optim.lr_image", "optim.gamma", "code"}
    assert drift["changes"]["optim.gamma"] == [0.1, 0.5]
    assert read_config(run.config).optim.gamma == 0.5
    assert (
        run.root / "code-1" / "dfer_dist" / "training" / "engine.py"
    ).read_text() == "# as it was then"
    assert len((run.code / "dfer_dist" / "training" / "engine.py").read_text()) > 1000
    assert read_json(run.root / "provenance-1.json")["code_hash"] == "0" * 16
    open_run(tmp_path / "runs", None, "demo", new, (), None, 1)  # from now on this is the run
    with pytest.raises(UserError, match=r"tracking\.enabled was False"):
        open_run(
            tmp_path / "runs", None, "demo", [*new, "tracking.enabled=true"], ("tracking",), None, 1
        )


@pytest.mark.parametrize("write", range(7))
def test_drift_that_was_cut_short_is_taken_over_by_the_same_command(
    run: RunDir, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    write_json(run.provenance, read_json(run.provenance) | {"code_hash": "0" * 16})
    (run.code / "dfer_dist" / "training" / "engine.py").write_text("# as it was then")
    lock = run.environment.read_text()
    run.environment.write_text("torch==1.0")
    calls = [0]

    def counted(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **more: object) -> None:
            calls[0] += 1
            if calls[0] == write + 1:
                raise KeyboardInterrupt
            function(*args, **more)

        return call

    given = (
        tmp_path / "runs",
        None,
        "demo",
        [*words, "optim.gamma=0.5"],
        ("optim", "code"),
        None,
        1,
    )
    for name in ("snapshot_code", "write_text", "write_json"):
        monkeypatch.setattr(runs, name, counted(getattr(runs, name)))
    monkeypatch.setattr(RunDir, "change", counted(RunDir.change))
    with pytest.raises(KeyboardInterrupt):
        open_run(*given)
    monkeypatch.undo()
    open_run(*given)
    assert {key for drift in run.drifts() for key in drift["changes"]} == {"optim.gamma", "code"}
    assert read_config(run.config).optim.gamma == 0.5
    old = [
        (d / "dfer_dist" / "training" / "engine.py").read_text() for d in run.root.glob("code-*")
    ]
    assert old.count("# as it was then") == 1
    assert len((run.code / "dfer_dist" / "training" / "engine.py").read_text()) > 1000
    assert any(read_json(f)["code_hash"] == "0" * 16 for f in run.root.glob("provenance-*.json"))
    assert run.environment.read_text() == lock
    assert any(f.read_text() == "torch==1.0" for f in run.root.glob("environment-*.txt"))
    open_run(*given)


def test_start_that_is_cut_short_leaves_the_name_free(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(target: Path) -> None:
        target.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.runs.snapshot_code", stop)
    with pytest.raises(KeyboardInterrupt):
        open_run(tmp_path, None, "demo", words, (), None, 1)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []
    open_run(tmp_path, None, "demo", words, (), None, 1)


# The ranks below run from the run's own code, so a few lines there stand for what a rank may do.


def test_fold_that_crashes_is_a_failure_with_its_own_reason(
    run: RunDir, words: list[str], tmp_path: Path
) -> None:
    (run.code / "dfer_dist" / "train.py").write_text("raise RuntimeError('boom')\n")
    run.fold(2).root.mkdir()
    run.fold(2).log.write_text("error: of an earlier attempt\n")
    done = dfer("train", "demo", "--fold", "2", *words, cwd=tmp_path)
    assert (done.returncode, "the same command" in done.stderr) == (
        1,
        True,
    )  # 2 is for what a person can mend at once
    assert done.stderr.startswith("fold 2 failed")
    assert "fold 2 failed (status 1): RuntimeError: boom" in done.stdout
    assert str(run.fold(2).log) in done.stdout
    done = dfer("crossval", "demo", "--folds", "1,3", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr.startswith("fold 1, 3 failed")) == (1, True)


def test_rank_that_is_killed_is_named(run: RunDir, words: list[str], tmp_path: Path) -> None:
    """Its peers fail a moment later and say so at length; the cause is the one that died first."""
    (run.code / "dfer_dist" / "train.py").write_text(
        "import os, signal, sys, time\n"
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(1)\n"
        "sys.exit('connection reset by peer')\n"
    )
    done = dfer("train", "demo", "--fold", "2", *words, "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 1
    assert "rank 1 was ended by SIGKILL" in done.stdout


def test_ranks_that_die_are_started_again_and_not_for_ever(
    run: RunDir, words: list[str], tmp_path: Path
) -> None:
    """As long as each attempt leaves a newer checkpoint; then three times more."""
    (run.code / "dfer_dist" / "train.py").write_text(
        "import os, pathlib, signal, sys\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--run') + 1]) / 'fold-2' / 'checkpoints'\n"
        "folder.mkdir(exist_ok=True)\n"
        "count = len(list(folder.iterdir()))\n"
        "print('attempt', flush=True)\n"
        "if count < 5: (folder / f'step-{count}').mkdir()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = dfer("train", "demo", "--fold", "2", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert run.fold(2).log.read_text().count("attempt") == 5 + 1 + 3
    assert (
        done.stdout.count(
            "rank 0 was ended by SIGKILL, as by the kernel when memory runs out; resuming from the last"
        )
        == 8
    )


def test_time_that_is_up_ends_the_command(run: RunDir, words: list[str], tmp_path: Path) -> None:
    (run.code / "dfer_dist" / "train.py").write_text(
        "import json, pathlib, sys\n"
        "root = pathlib.Path(sys.argv[sys.argv.index('--run') + 1]) / 'fold-1'\n"
        "why = {'version': 1, 'state': 'PREEMPTED', 'steps': 9, 'attempts': [{'why': 'time is up'}]}\n"
        "(root / 'status.json').write_text(json.dumps(why))\n"
        "print(sys.argv[-2:], flush=True)\n"
        "sys.exit(75)\n"
    )
    before = time.time()
    done = dfer("crossval", "demo", *words, "--max-minutes", "7", cwd=tmp_path)
    assert done.returncode == 75
    assert f"time is up: saved in {run.root}; run the same command to resume" in done.stdout
    flag, deadline = eval(run.fold(1).log.read_text())
    assert flag == "--deadline" and 0 <= float(deadline) - before - 420 < 20
    assert not run.fold(2).root.exists()
    done = dfer(
        "crossval", "demo", *words, "--folds", "2", "--max-minutes", "0.5", cwd=tmp_path
    )  # not enough to begin with
    assert (done.returncode, "time is up" in done.stdout, run.fold(2).log.exists()) == (
        75,
        True,
        False,
    )


def test_ranks_whose_command_is_gone_are_waited_for(
    run: RunDir, words: list[str], tmp_path: Path
) -> None:
    """They hold the fold while they save; a command that still runs is not waited for."""
    (run.code / "dfer_dist" / "train.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), sys.exit(75)))\n"
        "mark = pathlib.Path(sys.argv[sys.argv.index('--run') + 1]) / 'seen'\n"
        "if mark.exists(): sys.exit('the second')\n"
        "mark.touch()\n"
        "time.sleep(60)\n"
    )
    command = [str(DFER), "train", "demo", "--fold", "1", *words]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (run.root / "seen").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    check_refusal(dfer(*command[1:], cwd=tmp_path), "another command is working on")
    first.kill()
    first.wait()
    begin = time.monotonic()
    done = dfer(*command[1:], cwd=tmp_path)
    assert (done.returncode, "the second" in done.stdout) == (1, True)
    assert time.monotonic() - begin > 1.5


def test_a_refused_command_changes_nothing_for_the_one_that_runs(
    run: RunDir, words: list[str], tmp_path: Path
) -> None:
    before = run.config.read_text()
    with fold_lock(run.fold(3)):
        for more, allow in ((["optim.gamma=0.5"], ("optim",)), (["train.micro_batch=2"], ())):
            with pytest.raises(UserError, match=r"another command is working on .*fold-3"):
                open_run(tmp_path / "runs", None, "demo", [*words, *more], allow, "1", 1)
        open_run(tmp_path / "runs", None, "demo", words, (), "1", 1)  # another fold, as it is
    assert run.config.read_text() == before and not run.drifts()


def test_two_commands_on_one_fold(run: RunDir, words: list[str], tmp_path: Path) -> None:
    with fold_lock(run.fold(1)):
        done = dfer("train", "demo", "--fold", "1", *words, cwd=tmp_path)
    check_refusal(done, "another command is working on")


def test_run_that_failed_before_its_first_step_gives_way(tmp_path: Path, words: list[str]) -> None:
    done = dfer("train", "demo", "--fold", "1", *words, "model.backbone=foo", cwd=tmp_path)
    check_refusal(done, "no backbone 'foo'")
    again, _ = open_run(tmp_path / "runs", None, "demo", words, (), "1", 1)
    assert read_config(again.config).model.backbone == "tiny"
    assert not again.fold(1).root.exists()


def test_mistake_found_by_a_rank_stops_all_folds(
    run: RunDir, words: list[str], tmp_path: Path
) -> None:
    (run.code / "dfer_dist" / "train.py").write_text(
        "import sys\nprint('error: of mine', file=sys.stderr)\nsys.exit(2)\n"
    )
    done = dfer("crossval", "demo", *words, "--nproc", "2", cwd=tmp_path)
    check_refusal(done, "error: of mine\n")
    assert not run.fold(2).root.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.parametrize("status", [75, 1])
def test_told_to_stop(
    run: RunDir, words: list[str], tmp_path: Path, status: int, number: signal.Signals
) -> None:
    (run.code / "dfer_dist" / "train.py").write_text(
        "import os, signal, sys, time\n"
        "told = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: told.append(1))\n"
        "print('up', os.environ['RANK'], os.environ['WORLD_SIZE'], flush=True)\n"
        "deadline = time.monotonic() + 60\n"
        "while not told and time.monotonic() < deadline:\n"
        "    time.sleep(0.05)\n"
        f"sys.exit({status} if told else 9)\n"
    )
    command = [str(DFER), "crossval", "demo", *words, "--nproc", "2"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    logs = [run.fold(1).log, run.fold(1).root / "log-rank1.txt"]
    deadline = time.monotonic() + 60
    while not all(log.exists() and log.read_text() for log in logs) and time.monotonic() < deadline:
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does it: to all of the foreground
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert [log.read_text() for log in logs] == ["up 0 2\n", "up 1 2\n"]
    if status == 75:
        assert "saved in" in out and "run the same command to resume" in out
        assert (process.returncode, err) == (75, "")
    else:  # a failure is one, also of those that were told to leave: nobody is to start it again
        assert "fold 1 failed (status 1)" in out
        assert process.returncode == 1
    assert not run.fold(2).log.exists()


@pytest.mark.parametrize(
    ("status", "other"), [(75, 75), (0, 0), (1, -signal.SIGKILL), (2, -signal.SIGKILL)]
)
def test_rank_that_lags_is_killed_only_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, status: int, other: int
) -> None:
    """Rank 0 may still write to the tracking server when the others have left with everything saved."""
    monkeypatch.setattr(processes, "_GRACE", 0.1)
    ends = f"import sys; sys.exit({status})"
    lags = f"import sys, time; time.sleep(1.5); sys.exit({status})"
    ranks = [subprocess.Popen([sys.executable, "-S", "-c", code]) for code in (lags, ends)]
    told = processes.SignalCounter()
    try:
        code = processes.wait_for_ranks(ranks, told, lambda: None)
    finally:
        told.restore()
    assert [r.returncode for r in ranks] == [other, status]
    assert code == (status if status in (0, 2, 75) else other, None)
