from pathlib import Path

import pytest
import torch

from dfer_dist.checkpoints import portable as checkpoint
from tests.helpers.paths import HELPERS
from tests.helpers.ranks.spawn import run_ranks

SCRIPT = HELPERS / "ranks" / "small_engine.py"
STEPS, HALF = 8, 4


def run(folder: Path, ranks: int, steps: int, **options: object) -> dict:
    """Train the toy model on ``ranks`` real processes; returns what rank 0 printed."""
    arguments = [
        w
        for k, v in options.items()
        for w in (f"--{k}", *map(str, v if isinstance(v, list) else [v]))
    ]
    return run_ranks(SCRIPT, ranks, "--folder", str(folder), "--steps", str(steps), *arguments)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """AdamW in bf16 on two ranks, never stopped; with the checkpoint of the middle."""
    folder = tmp_path_factory.mktemp("undisturbed")
    half = run(folder, 2, HALF, optimizer="adamw", precision="bf16", ema=0.9)
    whole = run(folder / "whole", 2, STEPS, optimizer="adamw", precision="bf16", ema=0.9)
    return {"half": half, "whole": whole}


def test_resuming_on_as_many_ranks_is_equal_to_the_bit(undisturbed, tmp_path):
    half, whole = undisturbed["half"], undisturbed["whole"]
    options = {"optimizer": "adamw", "precision": "bf16", "ema": 0.9}
    resumed = run(tmp_path, 2, STEPS, **options, resume=half["path"])
    assert half["losses"] + resumed["losses"] == whole["losses"]
    assert resumed["weights"] == whole["weights"] != whole["average"]
    assert resumed["average"] == whole["average"] != half["average"]


@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), (4, 3)])
def test_resuming_on_other_ranks_and_stages_keeps_the_curve(undisturbed, tmp_path, ranks, stage):
    resumed = run(
        tmp_path,
        ranks,
        STEPS,
        stage=stage,
        optimizer="adamw",
        precision="bf16",
        resume=undisturbed["half"]["path"],
    )
    assert resumed["losses"] == pytest.approx(undisturbed["whole"]["losses"][HALF:], rel=2e-2)
    assert resumed["rates"] == undisturbed["whole"]["rates"]


def test_average_that_is_turned_on_later_starts_at_the_weights_of_the_checkpoint(tmp_path):
    half = run(tmp_path / "half", 2, HALF, optimizer="adamw")
    options = {"optimizer": "adamw", "ema": 0.5, "resume": half["path"]}
    rest = run(tmp_path / "rest", 2, HALF + 1, **options)
    before, after = (checkpoint.read(Path(done["path"])) for done in (half, rest))
    for name, weight in after.model.items():
        assert torch.equal(after.ema[name], before.model[name].lerp(weight, 0.5))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_optimizer_gives_the_same_run_to_the_bit(undisturbed, tmp_path, stage):
    half = undisturbed["half"]["path"]
    plain, offloaded = (
        run(
            tmp_path / name,
            2,
            STEPS,
            stage=stage,
            optimizer="adamw",
            precision="bf16",
            ema=0.9,
            offload=offload,
            resume=half,
        )
        for name, offload in (("plain", 0), ("offloaded", 1))
    )
    assert offloaded == plain | {"path": offloaded["path"]}


@pytest.mark.faults_full
def test_sgd_with_momentum_resumes_from_zero3(tmp_path):
    whole = run(tmp_path / "a", 2, STEPS, stage=3, ema=0.9)
    half = run(tmp_path / "b", 2, HALF, stage=3, ema=0.9)
    resumed = run(tmp_path / "c", 2, STEPS, stage=1, ema=0.9, resume=half["path"])
    assert half["losses"] + resumed["losses"] == pytest.approx(whole["losses"], rel=1e-5)


@pytest.mark.parametrize("stage", [1, 3])
def test_sgd_without_momentum_has_no_moments(tmp_path, stage):
    whole = run(tmp_path / "a", 1, STEPS, stage=stage, momentum=0)
    half = run(tmp_path / "b", 1, HALF, stage=stage, momentum=0)
    assert not checkpoint.read(Path(half["path"])).optimizer
    resumed = run(tmp_path / "c", 1, STEPS, stage=stage, momentum=0, resume=half["path"])
    assert half["losses"] + resumed["losses"] == whole["losses"]


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (1, "bf16"),
        pytest.param(1, "fp32", marks=pytest.mark.faults_full),
        (1, "fp16"),
        (2, "bf16"),
        (3, "bf16"),
    ],
)
def test_step_with_a_nan_on_one_rank_changes_nothing(tmp_path, stage, precision):
    """An infinite loss with a finite gradient, too, which DeepSpeed itself would not skip."""
    options = {"precision": precision, "optimizer": "adamw", "ema": 0.9}
    seen = run(tmp_path, 2, 6, stage=stage, poison=[2], explode=[4], **options)
    assert seen["outcomes"] == ["TAKEN", "TAKEN", "BAD", "TAKEN", "BAD", "TAKEN"]
    for digests in (seen["digests"], seen["averages"]):
        assert digests[2] == digests[1] and digests[4] == digests[3]
        assert len(set(digests)) == 4


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp16_resumes_to_the_bit_with_its_loss_scale(tmp_path, stage):
    """Steps 1 and 2 overflow: the second halves the scale. It doubles after two steps without."""
    given = {
        "stage": stage,
        "optimizer": "adamw",
        "precision": "fp16",
        "overflow": [1, 2],
        "window": 2,
        "ema": 0.9,
    }
    half = run(tmp_path / "half", 2, HALF, **given)
    whole = run(tmp_path / "whole", 2, STEPS, **given)
    rest = run(tmp_path / "rest", 2, STEPS, resume=half["path"], **given)
    assert whole["outcomes"] == ["TAKEN", "OVERFLOW", "OVERFLOW"] + 5 * ["TAKEN"]
    assert whole["scales"] == [65536.0] * 3 + [32768.0] * 3 + [65536.0] * 2
    for key in ("losses", "outcomes", "scales"):
        assert half[key] + rest[key] == whole[key]
    assert rest["weights"] == whole["weights"] and rest["average"] == whole["average"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp16_follows_float32_while_the_loss_scale_doubles(tmp_path, stage):
    """It doubles after every step; each step takes its whole gradient."""
    given = {"stage": stage, "window": 1, "scale": 256.0}
    exact, seen = (run(tmp_path / p, 2, STEPS, precision=p, **given) for p in ("fp32", "fp16"))
    assert seen["scales"][-1] > 16 * seen["scales"][0]
    assert seen["losses"] == pytest.approx(exact["losses"], rel=2e-4)
