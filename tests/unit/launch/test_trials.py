"""The trials of a search with Optuna, and with a machine that only writes their scores."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import SweepDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json
from launch.commands import tune as command
from launch.fold_table import FoldTable
from launch.runs import remove_run
from launch.slurm.state import DONE, FAILED, STOPPED
from launch.sweeps import search, trials
from launch.sweeps.machines import TrialEnd
from launch.sweeps.search import SearchOptions, open_search
from launch.sweeps.search_report import report_search
from launch.sweeps.trials import TrialLoop
from launch.sweeps.variants import JobRequest
from tests.helpers.cli import small_run
from tests.helpers.made_runs import make_fold

pytestmark = pytest.mark.filterwarnings("error::UserWarning")
SPACE = "optim.lr_image: {low: 1.0e-6, high: 1.0e-3, log: true}\ntrain.label_smoothing: [0, 0.1]\n"
OPTIONS = SearchOptions("uar", seed=0, val_seed=0, prune=True)
EPOCHS = 4


class Machine:
    """Trains an epoch of each trial a poll; ``score`` is that of a trial in its last one."""

    ranks = 1

    def __init__(self, score: Callable[[int], float]) -> None:
        self.score = score
        self.signals = SimpleNamespace(count=0)
        self.table = FoldTable(9, EPOCHS, "trial")
        self.runs: dict[int, RunDir] = {}
        self.ends: dict[int, TrialEnd] = {}
        self.started: list[int] = []
        self.most = 0  # at a time
        self.stopped: list[int] = []
        self.failing: set[int] = set()
        self.reason = "the loss was not finite"
        self.killed_at: tuple[int, int] | None = None  # trial and epoch

    def start(self, number: int, run: RunDir) -> None:
        self.started.append(number)
        self.runs[number] = run
        if not run.fold(1).root.exists():
            make_fold(run.root, 1, n=60)
            run.fold(1).result.rename(run.fold(1).root / "later.json")
        self.most = max(self.most, len(self.runs))

    def stop(self, number: int, run: RunDir) -> None:
        self.stopped.append(number)
        self.ends[number] = TrialEnd(STOPPED)

    def close(self) -> None:
        pass

    def poll(self) -> None:
        for number, run in self.runs.items():
            if number in self.ends:
                continue
            fold, epoch = run.fold(1), 1
            if fold.metrics.exists():
                epoch += fold.metrics.read_text().count("\n")
            if (number, epoch) == self.killed_at:
                raise KeyboardInterrupt
            score = self.score(number) * epoch / EPOCHS
            with fold.metrics.open("a") as file:
                file.write(json.dumps({"epoch": epoch, "test_uar": score}) + "\n")
            if number in self.failing:
                self.ends[number] = TrialEnd(FAILED, self.reason)
            elif epoch == EPOCHS:
                fold.root.joinpath("later.json").rename(fold.result)
                write_json(fold.result, read_json(fold.result) | {"uar": score})
                self.ends[number] = TrialEnd(DONE)

    def end(self, number: int) -> TrialEnd | None:
        end = self.ends.pop(number, None)
        if end:
            del self.runs[number]
        return end


@pytest.fixture
def request_(tiny_shards: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobRequest:
    def open_run(runs: Path, name: str, *_: object) -> None:
        if not RunDir(runs / name).run.exists():
            (runs / name).mkdir(parents=True)
            write_json(RunDir(runs / name).run, {"folds": [1], "tracking": None})

    monkeypatch.setattr(trials, "open_run", open_run)
    monkeypatch.setattr(trials, "is_reported", lambda *_: True)
    (tmp_path / "space.yaml").write_text(SPACE)
    settings = [*small_run(tiny_shards), f"train.epochs={EPOCHS}"]
    return JobRequest("demo", settings, "s", tmp_path, "1", ())


def tune(
    request: JobRequest, machine: Machine, total: int, options: SearchOptions = OPTIONS
) -> tuple[bool, dict[int, str]]:
    """Train trials, two at a time; return whether they are over, and their states."""
    file = request.runs / "space.yaml"
    with open_search(request, file, options, request.overrides, 1) as own:
        is_over = TrialLoop(own, machine, total, 2).run()  # type: ignore[arg-type]
        report_search(own, ["--nproc", "2"])
        return is_over, {t.number: t.state.name for t in own.trials}


def test_trials_train_two_at_a_time(
    request_: JobRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(lambda number: 50.0 + number)
    assert tune(request_, machine, 4) == (True, dict.fromkeys(range(4), "COMPLETE"))
    assert machine.started == [0, 1, 2, 3] and machine.most == 2
    sweep = SweepDir.of(request_.runs, "s")
    command = f"{sweep.root / 'best.yaml'} --name s-best --folds 1 --runs {request_.runs} --nproc 2"
    assert f"train it: dfer crossval {command}\n" in capsys.readouterr().out
    rows = (sweep.root / "trials.csv").read_text().splitlines()
    assert rows[0] == "Trial,State,UAR,optim.lr_image,train.label_smoothing"
    assert [row.split(",")[:3] for row in rows[1:]] == [
        [str(i), "complete", f"{50 + i:.2f}"] for i in (3, 2, 1, 0)
    ]
    settings = [m.setting for m in sweep.info().members]
    assert len({setting[0] for setting in settings}) == 4, "each has another learning rate"
    # more of them
    more = Machine(lambda number: 1.0)
    assert tune(request_, more, 5)[1] == dict.fromkeys(range(5), "COMPLETE")
    assert more.started == [4]


def test_table_of_many_settings_fits(
    request_: JobRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    space = [f"optim.lr_{name}: {{low: 1.0e-6, high: 1.0e-3}}" for name in ("image", "temporal")]
    space += ["train.label_smoothing: {low: 0, high: 0.1}", "optim.weight_decay: [0, 0.0001]"]
    space += ["optim.clip_norm: [0.25, 1.0]", "model.image: [all, none]", "data.block: [64, 512]"]
    (request_.runs / "space.yaml").write_text("\n".join(space))
    tune(request_, Machine(lambda number: 50.0), 10)
    said = capsys.readouterr().out
    table = said[said.index("s: trials") :].splitlines()[1:-3]
    assert len(table) >= 11 and max(map(len, table)) <= 80
    assert "Left out at 80 characters: block; trials.csv has them." in said
    assert "importance among the best trials: " in said


def test_setting_without_effect_is_left_out_of_a_trial(request_: JobRequest) -> None:
    text = SPACE + "model.image: [all, lora]\noptim.lr_lora: [0.001, 0.002]\n"
    (request_.runs / "space.yaml").write_text(text)
    tune(request_, Machine(lambda number: 50.0 + number), 8)
    sweep = SweepDir.of(request_.runs, "s")
    members = sweep.info().members
    given = [dict(text.split("=") for text in m.setting) for m in members]
    assert {own["model.image"] for own in given} == {"all", "lora"}
    for own in given:
        uses_lora = own["model.image"] == "lora"
        assert ("optim.lr_lora" in own, "optim.lr_image" in own) == (uses_lora, not uses_lora)
    with (sweep.root / "trials.csv").open() as file:
        rows = {int(row["Trial"]): row for row in csv.DictReader(file)}
    for i, own in enumerate(given):
        assert {k: v for k, v in rows[i].items() if "." in k and v} == own
    best = (sweep.root / "best.yaml").read_text().replace("\n# ", " ")
    assert f"trial 7 of s.sweep with {', '.join(members[7].setting)}, and" in best


def test_poor_trial_is_pruned(request_: JobRequest) -> None:
    machine = Machine(lambda number: [50.0, 5.0][number == 6])
    _, states = tune(request_, machine, 7)
    assert states[6] == "PRUNED" and Counter(states.values())["COMPLETE"] == 6
    assert machine.stopped == [6]
    sweep = SweepDir.of(request_.runs, "s")
    assert [m.pruned for m in sweep.info().members] == [False] * 6 + [True]
    # after a quarter of the epochs
    assert sweep.runs()[6].fold(1).metrics.read_text().count("\n") == 2
    last = (sweep.root / "trials.csv").read_text().splitlines()[-1]
    assert last.startswith("6,pruned,2.50,")


def test_pruning_can_be_off(request_: JobRequest) -> None:
    machine = Machine(lambda number: [50.0, 5.0][number == 6])
    _, states = tune(request_, machine, 7, replace(OPTIONS, prune=False))
    assert set(states.values()) == {"COMPLETE"}


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_killed_search_loses_no_trial(request_: JobRequest, epoch: int) -> None:
    whole = Machine(lambda number: 50.0)
    killed = Machine(lambda number: 50.0)
    killed.killed_at = (2, epoch)
    with pytest.raises(KeyboardInterrupt):
        tune(request_, killed, 5)
    before = SweepDir.of(request_.runs, "s").info().members
    assert tune(request_, whole, 5)[1] == dict.fromkeys(range(5), "COMPLETE")
    assert whole.started[:2] == [2, 3], "those that were trained come first"
    members = SweepDir.of(request_.runs, "s").info().members
    assert members[: len(before)] == before and len(members) == 5
    for run in SweepDir.of(request_.runs, "s").runs():
        assert run.fold(1).metrics.read_text().count("\n") == EPOCHS, "each epoch once"


def test_kill_between_two_writes_is_mended(
    request_: JobRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sweep = request_.runs / "space.yaml", SweepDir.of(request_.runs, "s")
    with open_search(request_, file, OPTIONS, request_.overrides, 1) as own:
        own.study.ask()  # without any value
        pruned = own.begin(1)
        run = RunDir(request_.runs / "s-trial1")
        trials.open_run(request_.runs, run.root.name)  # type: ignore[call-arg, arg-type]
        sweep.add(run, replace(own.member(pruned), pruned=True))
        wanted = own.begin(2).params
    journal = sweep.root / "journal.log"
    with journal.open("a") as log:
        log.write('{"op_code": 4, "wor')
    (sweep.root / "journal.log.lock").symlink_to(journal)
    (request_.runs / "s-trial0").mkdir()
    (request_.runs / "s-trial0" / "config.yaml").touch()
    machine = Machine(lambda number: 50.0)
    states = tune(request_, machine, 3)[1]
    assert states == {0: "COMPLETE", 1: "PRUNED", 2: "COMPLETE"}
    assert machine.started == [0, 2] and machine.stopped == [1]
    with open_search(request_, file, OPTIONS, request_.overrides, 1) as own:
        assert own.trials[2].params == wanted
        assert own.trials[0].params.keys() == wanted.keys()


def test_failures_in_a_row_end_the_search(
    request_: JobRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(lambda number: 50.0)
    machine.failing = {2, 3, 4, 5}
    with pytest.raises(UserError, match="trials in a row failed: see why above"):
        tune(request_, machine, 9)
    assert "trial 4 failed: the loss was not finite" in capsys.readouterr().out
    assert 6 not in machine.started


def test_failed_search_has_a_table_and_short_reasons(
    request_: JobRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(lambda number: 50.0)
    machine.failing, machine.reason = set(range(9)), "clips " + "00012 " * 160 + "\nmore"
    monkeypatch.setattr(command, "LocalMachine", lambda *_: machine)
    file, settings = request_.runs / "space.yaml", request_.overrides
    with pytest.raises(UserError, match="3 trials in a row failed"):
        command.tune("demo", file, 9, settings, name="s", runs=request_.runs)
    rows = (request_.runs / "s.sweep" / "trials.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [[str(i), "fail"] for i in range(3)]
    said = capsys.readouterr().out
    assert "s: trials" in said and "trial 0 failed: clips 00012" in said
    assert said.count("00012") < 3 * 40 and "more" not in said


def test_stopped_search_starts_no_other(request_: JobRequest) -> None:
    machine = Machine(lambda number: 50.0)
    machine.signals.count = 1
    assert tune(request_, machine, 3) == (False, {})


def test_another_search_is_refused(request_: JobRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(request_, Machine(lambda number: 50.0), 1)
    machine = Machine(lambda number: 50.0)
    for changed, message in (
        (replace(OPTIONS, metric="war"), "metric was uar, now war"),
        (replace(OPTIONS, val_seed=1), "val_seed was 0, now 1"),
    ):
        with pytest.raises(UserError, match=f"belongs to another search: {message}"):
            tune(request_, machine, 2, changed)
    other = replace(request_, overrides=[*request_.overrides, "train.ema=0.9"])
    with pytest.raises(UserError, match=r"train\.ema was 0\.0, now 0\.9\. Use the same"):
        tune(other, machine, 2)
    (request_.runs / "space.yaml").write_text(SPACE.replace("0.1", "0.2"))
    with pytest.raises(UserError, match=r"space train\.label_smoothing was \[0, 0\.1\], now"):
        tune(request_, machine, 2)
    monkeypatch.setattr(search, "load_experiment", several_sets)
    with pytest.raises(UserError, match="several sets"):
        tune(request_, machine, 2)
    assert not machine.started


def several_sets(*_: object) -> tuple[object, None]:
    return SimpleNamespace(data=SimpleNamespace(locations=["a", "b"])), None


@pytest.mark.parametrize("line", ["garbage", "1", '{"op_code": 4}', '{"a": 1}', "\udcff"])
def test_damaged_journal_is_one_line(request_: JobRequest, line: str) -> None:
    tune(request_, Machine(lambda number: 50.0), 1)
    journal = SweepDir.of(request_.runs, "s").root / "journal.log"
    with journal.open("ab") as log:
        log.write(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(UserError, match=r"journal\.log is damaged .*another search") as error:
        tune(request_, Machine(lambda number: 50.0), 2)
    assert "\n" not in str(error.value)


def test_search_outlives_its_last_run(request_: JobRequest) -> None:
    tune(request_, Machine(lambda number: 50.0), 1)
    sweep = SweepDir.of(request_.runs, "s")
    remove_run(sweep.runs()[0])
    assert not sweep.runs() and (sweep.root / "journal.log").is_file()


def test_sweep_of_crossval_is_refused(request_: JobRequest) -> None:
    folder = SweepDir.of(request_.runs, "s")
    folder.root.mkdir()
    write_json(folder.file, {"key": "k", "members": []})
    with pytest.raises(UserError, match="is a sweep of dfer crossval: choose another --name"):
        tune(request_, Machine(lambda number: 50.0), 1)


def test_second_command_is_refused(request_: JobRequest) -> None:
    file = request_.runs / "space.yaml"
    with (
        open_search(request_, file, OPTIONS, request_.overrides, 1),
        pytest.raises(UserError, match="another command is working on"),
    ):
        tune(request_, Machine(lambda number: 50.0), 1)


def test_search_info_names_what_it_is_of(request_: JobRequest) -> None:
    tune(request_, Machine(lambda number: 50.0), 1)
    info = read_json(SweepDir.of(request_.runs, "s").root / "search.json")
    assert info["options"] == {"metric": "uar", "seed": 0, "val_seed": 0, "prune": True}
    assert info["folds"] == [1] and "data.shards" not in info["settings"]
