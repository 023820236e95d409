"""The runs of ``--sweep`` and ``--seeds``, and wrong requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import SweepDir, SweepMember, expand, sweep_of
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json
from launch.sweeps.variants import Variant, make_variants, parse_seeds

BASE = ["train.epochs=1"]


def variants(*sweeps: str, seeds: str | None = None, settings: list[str] = BASE) -> list[Variant]:
    return make_variants("demo", "demo", settings, sweeps, seeds)


def test_run_for_each_value_has_todays_names() -> None:
    assert variants() == [Variant("demo", BASE)]
    found = variants("model.backbone=tiny,a/b")
    assert [(v.name, v.settings) for v in found] == [
        ("demo-tiny", [*BASE, "model.backbone=tiny"]),
        ("demo-a-b", [*BASE, "model.backbone=a/b"]),
    ]


def test_grid_of_settings_and_seeds() -> None:
    found = variants("train.epochs=1,2", "optim.betas=[0.9,0.99],[0.9,0.999]", seeds="3,0-1")
    assert len(found) == 12
    # all settings of a seed, then those of the next one
    assert [v.member.seed for v in found if v.member] == [3] * 4 + [0] * 4 + [1] * 4
    assert found[1].name == "demo-1--0.9-0.999--seed3"
    setting = ["train.epochs=1", "optim.betas=[0.9,0.999]"]
    assert found[1].member == SweepMember(found[1].name, setting, 3)
    assert found[1].settings == [*BASE, *setting, "train.seed=3"]


def test_seeds_alone() -> None:
    assert [v.name for v in variants(seeds="0-2")] == ["demo-seed0", "demo-seed1", "demo-seed2"]
    assert parse_seeds("7") == [7]


@pytest.mark.parametrize(
    ("sweeps", "seeds", "why"),
    [
        (["model.backbone"], None, "give a setting and two values or more"),
        (["model.backbone=tiny"], None, "two values or more"),
        (["model.backbone=tiny,"], None, "two values or more"),
        (["=a,b"], None, "two values or more"),
        (["train.epochs=2,3,2"], None, "a value is given twice"),
        (["train.epochs=2,3", "train.epochs=4,5"], None, "a setting is given twice"),
        (["optim.weight_decay=0.1,1e-1"], None, "equal settings"),
        (["model.backbone=b/c,b:c"], None, "runs of one name, demo-b-c"),
        (["train.epochs=1,1-seed0"], None, "train.epochs"),
        (["train.seed=0,1"], None, "give --seeds 0,1"),
        (["train.keep=1,2"], None, "train.keep changes no score"),
        (["data.shards=a,b"], None, "other data needs a dfer crossval of its own"),
        (["train.epoch=1,2"], None, "did you mean 'train.epochs'"),
        ([], "", "give numbers and ranges such as 0-4"),
        ([], "a", "give numbers and ranges"),
        ([], "3-1", "give numbers and ranges"),
        ([], "-1", "give numbers and ranges"),
        ([], "0-2,1", "seed 1 is given twice"),
        ([], str(2**64), "give numbers and ranges"),
        ([], "0-99999999999", "at most 1000 seeds"),
        (["train.epochs=1,2,3"], "0-499", "ask for 1500 runs"),
    ],
)
def test_wrong_sweep_is_refused(sweeps: list[str], seeds: str | None, why: str) -> None:
    with pytest.raises(UserError, match=why) as error:
        variants(*sweeps, seeds=seeds)
    assert "\n" not in str(error.value)


def test_seeds_and_a_seed_are_refused() -> None:
    with pytest.raises(UserError, match=r"leave the argument train.seed=… out"):
        variants(seeds="0-1", settings=["train.seed=3"])


def make(runs: Path, name: str) -> RunDir:
    run = RunDir(runs / name)
    write_json(run.run, {"name": name, "folds": [1], "tracking": None})
    return run


def test_folder_of_a_sweep_gives_its_runs(tmp_path: Path) -> None:
    sweep = SweepDir.of(tmp_path, "demo")
    runs = [make(tmp_path, f"demo-seed{k}") for k in (0, 1)]
    for seed in (0, 1, 0):
        sweep.add(runs[seed], SweepMember(f"demo-seed{seed}", [], seed))
    assert sweep.root.name == "demo.sweep"
    assert [m.seed for m in sweep.info().members] == [0, 1]
    assert (sweep.runs(), expand(sweep.root)) == (runs, runs)
    assert (runs[0].info().sweep, sweep_of(runs[0])) == ("demo.sweep", sweep)
    assert sweep_of(make(tmp_path, "alone")) is None
    assert expand(runs[0].root) == runs[:1]
    runs[0].run.unlink()
    assert expand(sweep.root) == runs[1:]
    with pytest.raises(UserError, match=rf"give one of {tmp_path}/demo-\*, which dfer status "):
        RunDir(sweep.root).info()
    runs[1].run.unlink()
    with pytest.raises(UserError, match="none of its runs exists"):
        expand(sweep.root)
