"""What a person gets who installs: built from a copy of the checkout, used from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PROBE = """
import json, sys
import dfer_dist, launch.cli
from dfer_dist.config.load import config_dirs, load_config
print(json.dumps({
    "files": [dfer_dist.__file__, launch.cli.__file__],
    "dirs": [str(d) for d in config_dirs()],
    "shards": load_config("demo", ["data.shards=x"]).data.shards,
    "backbone": load_config("dfew_vitb16").model.backbone,
    "torch": "torch" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files an install is made of, without what earlier builds left beside them."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("dfer_dist", "launch", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    _call(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(out),
            str(source),
        ],
        out,
    )
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    _call(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            str(folder),
            str(wheel),
        ],
        folder,
    )
    return folder


def _call(command: list[str], cwd: Path, **env: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_every_module_and_experiment(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {
        f.relative_to(source).as_posix()
        for room in ("dfer_dist", "launch")
        for f in (source / room).rglob("*.py")
    }
    experiments = {f"dfer_dist/configs/{f.name}" for f in (source / "configs").glob("*.yaml")}
    assert "dfer_dist/configs/demo.yaml" in experiments
    assert "dfer_dist/configs/published.yaml" in experiments
    assert held == modules | experiments | {
        "dfer_dist/report/page.html",
        "dfer_dist/demo/tiny_demo.safetensors",
    }


def test_installed_wheel_works_from_a_foreign_folder(site: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()  # a folder of this name where a person works is not searched
    got = json.loads(_call([sys.executable, "-P", "-c", PROBE], tmp_path, PYTHONPATH=str(site)))
    assert got == {
        "files": [str(site / "dfer_dist" / "__init__.py"), str(site / "launch" / "cli.py")],
        "dirs": [str(site / "dfer_dist" / "configs")],
        "shards": "x",
        "backbone": "ViT-B-16-quickgelu",
        "torch": False,
    }


def test_installed_command_runs(site: Path, tmp_path: Path) -> None:
    assert "crossval" in _call(
        [sys.executable, str(site / "bin" / "dfer"), "--help"], tmp_path, PYTHONPATH=str(site)
    )


def test_snapshot_of_an_installed_copy_runs(site: Path, tmp_path: Path) -> None:
    make = "import sys; from pathlib import Path; from dfer_dist.runs.provenance import snapshot_code; snapshot_code(Path('code'))"
    _call([sys.executable, "-P", "-c", make], tmp_path, PYTHONPATH=str(site))
    got = json.loads(
        _call([sys.executable, "-P", "-c", PROBE], tmp_path, PYTHONPATH=str(tmp_path / "code"))
    )
    assert got["files"] == [
        str(tmp_path / "code" / "dfer_dist" / "__init__.py"),
        str(tmp_path / "code" / "launch" / "cli.py"),
    ]


def test_editable_install_finds_the_experiments_of_its_checkout(
    source: Path, tmp_path: Path
) -> None:
    build = (
        "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    )
    _call([sys.executable, "-c", build, str(tmp_path)], source)
    (file,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(file).extractall(tmp_path / "site")
    # -S: without the .pth files of this environment, where another checkout may be installed
    setup = f"import site, sys; site.addsitedir({str(tmp_path / 'site')!r}); sys.path.append({sysconfig.get_path('purelib')!r})"
    got = json.loads(_call([sys.executable, "-P", "-S", "-c", setup + PROBE], tmp_path))
    assert got["files"] == [
        str(source / "dfer_dist" / "__init__.py"),
        str(source / "launch" / "cli.py"),
    ]
    assert got["dirs"] == [str(source / "configs")]
    assert got["backbone"] == "ViT-B-16-quickgelu"
