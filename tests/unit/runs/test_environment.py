"""``environment.txt``: the packages a run was opened with, and nodes that have others."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from dfer_dist.runs.provenance import environment_lock, other_packages
from launch.runs import open_run
from tests.helpers.cli import check_refusal, dfer

SHA = "0123456789abcdef" * 4


def install(folder: Path, name: str, version: str, origin: dict[str, object] | None = None) -> None:
    """What pip leaves of an installed distribution."""
    info = folder / f"{name.lower().replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: not this\n"
    )
    if origin:
        (info / "direct_url.json").write_text(json.dumps(origin))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is looked at for packages."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    install(tmp_path, "Zeta", "1.0")
    install(tmp_path, "alpha_b", "2.0+cpu")
    return tmp_path


def test_every_distribution_stands_in_it_with_its_origin(installed: Path) -> None:
    install(
        installed,
        "git-one",
        "1.2",
        {
            "url": "https://h/x.git",
            "vcs_info": {"vcs": "git", "commit_id": "abc1"},
            "subdirectory": "s",
        },
    )
    install(
        installed, "mine", "0.1", {"url": "file:///home/ada/mine", "dir_info": {"editable": True}}
    )
    install(
        installed,
        "wheel",
        "3",
        {"url": "https://h/w.whl", "archive_info": {"hashes": {"sha256": SHA}}},
    )
    (installed / "~umpy-1.dist-info").mkdir()  # what pip leaves of an upgrade that was cut short
    assert environment_lock().splitlines() == [
        f"# python {sys.version.split()[0]}",
        "alpha_b==2.0+cpu",
        "git-one @ git+https://h/x.git@abc1#subdirectory=s # git-one==1.2",
        "-e file:///home/ada/mine # mine==0.1",
        f"wheel @ https://h/w.whl#sha256={SHA} # wheel==3",
        "Zeta==1.0",
    ]


def test_what_a_build_left_in_a_checkout_is_not_what_is_installed(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python -m`` in a checkout finds its egg-info first."""
    origin = {"url": "file:///home/ada/mine", "dir_info": {"editable": True}}
    install(installed, "mine", "0.1", origin)
    lock = environment_lock()
    left = tmp_path / "checkout" / "mine.egg-info"
    left.mkdir(parents=True)
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 0.0.9\n")
    monkeypatch.setattr(sys, "path", [str(left.parent), *sys.path])
    assert environment_lock() == lock
    (installed / "mine-0.1.dist-info" / "METADATA").unlink()
    assert "mine==0.0.9" in environment_lock()  # where there is nothing else


def test_it_has_what_pip_has() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True
    )
    theirs = {line for line in done.stdout.splitlines() if "==" in line and line[0] != "#"}
    ours = set(environment_lock().splitlines())
    assert len(theirs) > 50 and theirs <= ours
    assert all(line.startswith(("-e ", "# python ")) or " @ " in line for line in ours - theirs)


def test_only_the_first_of_two_on_the_path_counts(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(installed / "later", "ZETA", "9")
    monkeypatch.setattr(sys, "path", [str(installed), str(installed / "later")])
    assert environment_lock().splitlines()[1:] == ["alpha_b==2.0+cpu", "Zeta==1.0"]


def test_what_differs_is_named(installed: Path) -> None:
    lock = environment_lock()
    assert other_packages(lock) == []
    there = (
        lock.replace("Zeta==1.0", "Zeta==1.1")
        .replace("alpha_b==2.0+cpu\n", "gone==1\n")
        .replace("# python 3", "# python 2")
    )
    python = sys.version.split()[0]
    assert other_packages(there) == [
        "alpha_b==2.0+cpu",
        "no gone==1",
        f"python {python}, not python 2{python[1:]}",
        "Zeta==1.0, not Zeta==1.1",
    ]


def test_a_run_keeps_it_and_a_node_that_differs_is_told_once(
    tiny_shards: Index, tmp_path: Path
) -> None:
    words = [
        f"data.shards={tiny_shards.root.as_uri()}",
        "data.cache=$DFER_UNSET",
        "tracking.enabled=false",
        "train.global_batch=8",
    ]
    run, _ = open_run(tmp_path / "runs", None, "demo", words, (), None, 2)
    lock = run.environment.read_text()
    assert lock == environment_lock()
    here = next(line for line in lock.splitlines() if line.startswith("torch=="))
    run.environment.write_text(lock.replace(here, "torch==0.1"))
    done = dfer("train", "demo", "--fold", "1", "--nproc", "2", *words, cwd=tmp_path)
    check_refusal(
        done, "$DFER_UNSET is not set here"
    )  # from a rank, which looks at its packages before anything else
    line = f"warning: {socket.gethostname()} has other packages than environment.txt of the run: {here}, not torch==0.1"
    logs = "".join(log.read_text() for log in run.fold(1).root.glob("log*.txt"))
    assert logs.splitlines().count(line) == 1 and logs.count("other packages") == 1
