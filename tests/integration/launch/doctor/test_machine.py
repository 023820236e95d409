"""What a machine lacks."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfer_dist.config.load import load_config
from dfer_dist.data.shards.index import Index
from launch.doctor import machine
from launch.doctor.checks import NOTE, OK, WRONG, Check
from launch.doctor.machine import MachineRequest
from tests.helpers.cli import check_refusal, dfer


def check_one(name: str, ask: MachineRequest) -> Check:
    (found,) = [check for check in machine.check_machine(ask) if check.subject == name]
    return found


def test_machine_that_lacks_things_is_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_NEEDED", ("torch", "no_such_package"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (tmp_path / "file").write_text("")
    found = {
        check.subject: check
        for check in machine.check_machine(
            MachineRequest(gpus=2, cpus=999, scratch=str(tmp_path / "file" / "x"))
        )
    }
    assert (
        found["python"].state == WRONG
        and "cannot import no_such_package (ModuleNotFoundError" in found["python"].text
    )
    assert (
        found["GPUs"].state == WRONG
        and "2 asked for, torch sees 0 (driver " in found["GPUs"].text
        and "CUDA_VISIBLE_DEVICES 0,1): look at nvidia-smi" in found["GPUs"].text
    )
    assert found["processors"].state == NOTE
    assert (
        found["DeepSpeed"].state == WRONG
        and "-m dfer_dist.training.engine" in found["DeepSpeed"].text
    )
    assert (
        found["scratch"].state == WRONG
        and "cannot be written (Not a directory)" in found["scratch"].text
    )
    monkeypatch.setattr(machine, "filesystem", lambda _: "nfs4")
    assert check_one("scratch", MachineRequest(scratch=str(tmp_path / "new"))).state == NOTE
    assert check_one("scratch", MachineRequest(scratch="$DFER_UNSET/x")).state == WRONG


@pytest.mark.parametrize(
    ("capability", "settings", "state"),
    [
        ((7, 0), [], WRONG),
        ((7, 5), [], WRONG),
        ((7, 0), ["train.precision=fp32"], OK),
        ((7, 5), ["train.precision=fp16"], OK),
        ((9, 0), [], OK),
    ],
)
def test_gpu_that_emulates_bf16_is_named(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], settings: list[str], state: str
) -> None:
    properties = SimpleNamespace(total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    config = load_config("demo", ["data.shards=x", *settings])
    found = machine._gpus(1, config)
    assert found.state == state and found.text.startswith("1 x Tesla V100, 16 GiB each")
    assert ("set train.precision=fp16" in found.text) == (state == WRONG)


def test_tracking_store_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mlflow.db"
    assert (
        check_one("tracking", MachineRequest(tracking=f"sqlite:///{file}")).state == OK
        and not file.exists()
    )
    with sqlite3.connect(file) as store:
        store.execute("create table other (x)")
    check = check_one("tracking", MachineRequest(tracking=f"sqlite:///{file}"))
    assert check.state == WRONG and "no such table" in check.text
    with sqlite3.connect(file) as store:
        store.execute("create table experiments (x)")
    assert check_one("tracking", MachineRequest(tracking=f"sqlite:///{file}")).state == OK
    monkeypatch.setattr(machine, "filesystem", lambda _: "nfs4")
    check = check_one("tracking", MachineRequest(tracking=f"sqlite:///{file}"))
    assert check.state == NOTE and "tracking.uri=http" in check.text
    check = check_one("tracking", MachineRequest(tracking="http://127.0.0.1:9"))
    assert check.state == WRONG and "cannot be reached" in check.text


def test_doctor_checks_this_machine_and_an_experiment(tmp_path: Path, tiny_shards: Index) -> None:
    done = dfer(
        "doctor",
        "demo",
        "model.pretrained=gone.pt",
        f"data.shards={tiny_shards.root}",
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[-1] == "1 thing is wrong" and done.stderr == ""
    assert (
        [line for line in lines if line.startswith("wrong")]
        == [line for line in lines if "weights: 'gone.pt'" in line]
        != []
    )
    assert any(line.startswith("ok    shards: dfew, 60 clips in 15 shards") for line in lines)
    check_refusal(
        dfer("doctor", "demo", "cluster.partition=gpu", cwd=tmp_path),
        "cluster.partition=gpu is for a cluster",
    )
