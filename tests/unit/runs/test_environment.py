"""``environment.txt``: the packages a run was opened with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dfer_dist.runs.provenance import environment_lock, other_packages

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


def test_lock_names_every_distribution_with_its_origin(installed: Path) -> None:
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


def test_lock_prefers_an_installation_to_build_leftovers(
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


def test_lock_names_the_first_of_two_on_the_path(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(installed / "later", "ZETA", "9")
    monkeypatch.setattr(sys, "path", [str(installed), str(installed / "later")])
    assert environment_lock().splitlines()[1:] == ["alpha_b==2.0+cpu", "Zeta==1.0"]


def test_other_packages_names_each_difference(installed: Path) -> None:
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
