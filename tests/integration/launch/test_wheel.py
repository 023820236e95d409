"""What a user gets who installs: built from a copy of the checkout, used in another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT

PACKAGES = ("dfer_dist", "launch")
PROBE = """
import json, sys
import dfer_dist, launch.cli
from dfer_dist.config.load import config_dir, load_config
print(json.dumps({
    "files": [dfer_dist.__file__, launch.cli.__file__],
    "configs": str(config_dir()),
    "shards": load_config("demo", ["data.shards=x"]).data.shards,
    "backbone": load_config("dfew_vitb16").model.backbone,
    "torch": "torch" in sys.modules,
}))
"""
SNAPSHOT = """
from pathlib import Path
from dfer_dist.runs.provenance import snapshot_code
snapshot_code(Path("code"))
"""
BUILD_EDITABLE = """
import sys
from setuptools.build_meta import build_editable
build_editable(sys.argv[1])
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the files of an install, without the rest of earlier builds."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in (*PACKAGES, "configs"):
        unwanted = shutil.ignore_patterns("__pycache__")
        # dfer_dist/configs is a symbolic link to configs
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=unwanted)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    python(command, out)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder)]
    python([*command, str(wheel)], folder)
    return folder


def python(arguments: list[str], cwd: Path, **env: str) -> str:
    """Run Python and return its output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def probe(site: Path, cwd: Path) -> dict[str, Any]:
    """Return what the package in ``site`` finds."""
    found: dict[str, Any] = json.loads(python(["-P", "-c", PROBE], cwd, PYTHONPATH=str(site)))
    return found


def files_of(folder: Path) -> list[str]:
    return [str(folder / "dfer_dist" / "__init__.py"), str(folder / "launch" / "cli.py")]


def test_wheel_holds_every_module_and_data_file(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        file.relative_to(source).as_posix()
        for package in PACKAGES
        for file in (source / package).rglob("*.py")
    }
    expected |= {
        f"dfer_dist/{file.relative_to(source).as_posix()}"
        for file in (source / "configs").rglob("*.yaml")
    }
    expected |= {
        file.relative_to(source).as_posix() for file in (source / "dfer_dist").glob("*/templates/*")
    }
    expected |= {"dfer_dist/demo/tiny_demo.safetensors", "launch/slurm/job.sh"}
    expected |= {"dfer_dist/models/towers/sizes.csv"}
    assert {"dfer_dist/configs/demo.yaml", "dfer_dist/configs/cluster/gpus8.yaml"} <= expected
    assert held == expected


def test_installed_wheel_works_in_another_folder(site: Path, tmp_path: Path) -> None:
    """A folder configs/ where the user works is not searched."""
    (tmp_path / "configs").mkdir()
    assert probe(site, tmp_path) == {
        "files": files_of(site),
        "configs": str(site / "dfer_dist" / "configs"),
        "shards": "x",
        "backbone": "ViT-B-16-quickgelu",
        "torch": False,
    }


def test_installed_command_runs(site: Path, tmp_path: Path) -> None:
    shown = python([str(site / "bin" / "dfer"), "--help"], tmp_path, PYTHONPATH=str(site))
    assert "crossval" in shown


def test_snapshot_of_an_installed_copy_runs(site: Path, tmp_path: Path) -> None:
    python(["-P", "-c", SNAPSHOT], tmp_path, PYTHONPATH=str(site))
    assert probe(tmp_path / "code", tmp_path)["files"] == files_of(tmp_path / "code")


def test_editable_install_finds_its_checkouts_experiments(source: Path, tmp_path: Path) -> None:
    python(["-c", BUILD_EDITABLE, str(tmp_path)], source)
    (file,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(file).extractall(tmp_path / "site")
    # -S: without the .pth files of this environment, where another checkout may be installed
    setup = (
        f"import site, sys; site.addsitedir({str(tmp_path / 'site')!r}); "
        f"sys.path.append({sysconfig.get_path('purelib')!r})\n"
    )
    # an inherited PYTHONPATH could hold another checkout too
    found = json.loads(python(["-P", "-S", "-c", setup + PROBE], tmp_path, PYTHONPATH=""))
    assert found["files"] == files_of(source)
    # the second is the link
    assert Path(found["configs"]).resolve() == (source / "configs").resolve()
    assert found["backbone"] == "ViT-B-16-quickgelu"
