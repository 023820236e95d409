"""Shards of a folder that all nodes see, copied once to each node's own disk: ``data.shards=file://…``."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import DataConfig
from dfer_dist.data.loading.loader import train_loader
from dfer_dist.data.loading.prefetch import check_cache
from dfer_dist.data.loading.sampler import EpochPlan, all_clips
from dfer_dist.data.shards import store
from dfer_dist.data.shards.index import Index, open_index
from dfer_dist.data.shards.reader import ClipReader, DamagedClip
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from launch.runs import open_run
from tests.helpers.cli import dfer
from tests.helpers.data.remote import READER, batches, every, release, same_clips, start_reader

SMALL = [
    "train.epochs=1",
    "data.num_frames=4",
    "data.image_size=32",
    "train.global_batch=8",
    "eval.batch=5",
]


SMALL += ["eval.shuffle_frames=false", "tracking.enabled=false", "data.workers=1"]


@pytest.fixture
def shared(tiny_shards: Index, tmp_path: Path) -> Path:
    """A copy of the set that may be damaged, in a folder whose name has to be quoted in a URL."""
    return Path(shutil.copytree(tiny_shards.root, tmp_path / "all nodes see 1%"))


@pytest.fixture(autouse=True)
def _forget_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_failed", {})


def opened(shared: Path, cache: Path, loss_budget: int = 0) -> Index:
    return open_index(DataConfig(shared.as_uri(), cache=str(cache)), loss_budget)


COUNT = """
import sys, os, time
from fsspec.implementations.local import LocalFileSystem
log, real = sys.argv.pop(), LocalFileSystem.get_file
def get_file(self, source, target, **options):
    with open(log, "a") as f:
        print(os.path.basename(source), file=f)
    time.sleep(0.02)  # so that the other one surely comes meanwhile
    return real(self, source, target, **options)
LocalFileSystem.get_file = get_file
"""


def test_processes_of_a_node_copy_each_file_once(
    shared: Path, tiny_shards: Index, tmp_path: Path
) -> None:
    log, cache = tmp_path / "log", tmp_path / "scratch"
    command = [
        sys.executable,
        "-c",
        COUNT + READER,
        shared.as_uri(),
        str(cache),
        str(10**9),
        "1",
        str(log),
    ]
    started = release([start_reader(command) for _ in range(2)])
    assert [p.communicate(timeout=60)[0] for p in started] == ["done\n"] * 2
    files = {f.name for f in shared.iterdir() if f.suffix != ".json"}
    assert len(files) == 30 and Counter(log.read_text().split()) == dict.fromkeys(files, 1)
    assert {s.sha256 for s in tiny_shards.shards} == {f.stem for f in cache.glob("*.tar")}


@pytest.mark.engine_full
def test_train_from_staged_shards_resumes_from_the_folder(shared: Path, tmp_path: Path) -> None:
    arguments = ["train", "demo", "--fold", "1", "--nproc", "2", *SMALL]
    scratch = {"DFER_TEST_SCRATCH": str(tmp_path / "own disk")}
    cache = "data.cache=$DFER_TEST_SCRATCH/$USER"
    done = dfer(
        *arguments,
        "--name",
        "staged",
        f"data.shards={shared.as_uri()}",
        cache,
        cwd=tmp_path,
        USER="me",
        **scratch,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(tmp_path / "runs" / "staged")
    assert read_config(run.config).data.cache == "$DFER_TEST_SCRATCH/$USER"
    assert read_json(run.provenance)["data"]["shards"] == shared.as_uri()
    assert len(list((tmp_path / "own disk" / "me").glob("*.tar"))) == 15
    again = dfer(*arguments, "--name", "staged", f"data.shards={shared}", cwd=tmp_path)
    assert again.returncode == 0 and read_config(run.config).data.shards == str(shared)


def test_staged_loader_matches_the_folder(shared: Path, tiny_shards: Index, tmp_path: Path) -> None:
    plan = EpochPlan(all_clips(tiny_shards, tiny_shards.train_shards(1)), 3, 0, 8, 2)
    data = DataConfig("-", num_frames=4, image_size=24, workers=1)
    here, there = (
        batches(train_loader(i, data, plan, epochs=1, micro_batch=8))
        for i in (tiny_shards, opened(shared, tmp_path / "scratch"))
    )
    assert here == there and len(here) == 6


def test_staged_copy_with_wrong_hash_is_refused(
    shared: Path, tiny_shards: Index, tmp_path: Path
) -> None:
    tar = shared / tiny_shards.shards[0].file
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    reader = ClipReader(opened(shared, tmp_path / "scratch"))
    with pytest.raises(DamagedClip, match="sha256") as caught:
        reader.read(0, 0, every)
    assert f"{shared.as_uri()}/{tar.name}" in str(caught.value)
    assert not list((tmp_path / "scratch").glob("*.tar"))
    assert same_clips(reader, ClipReader(tiny_shards), 1)


def test_missing_staged_files_fail_without_retries(
    shared: Path, tiny_shards: Index, tmp_path: Path
) -> None:
    begin, entry = time.monotonic(), tiny_shards.shards[0]
    (shared / entry.file).unlink()
    with pytest.raises(
        UserError,
        match=rf"{entry.file} is missing: copy it again; {entry.clips} clips would be lost",
    ):
        opened(shared, tmp_path / "scratch")
    reader = ClipReader(opened(shared, tmp_path / "scratch", loss_budget=entry.clips))
    with pytest.raises(DamagedClip, match="no such file there"):
        reader.read(0, 0, every)
    whole = tiny_shards.path(0).read_bytes()
    (shared / entry.file).write_bytes(
        whole[: len(whole) // 2]
    )  # cut short: no clip of it can be had, since none of it is copied
    with pytest.raises(UserError, match=f"{entry.clips} clips would be lost"):
        opened(shared, tmp_path / "scratch", loss_budget=entry.clips - 1)
    for gone in (tmp_path / "elsewhere", shared / "index.json"):
        with pytest.raises(UserError, match=r"index\.json: no such file there"):
            opened(gone, tmp_path / "scratch")
    assert time.monotonic() - begin < 0.9  # the first wait of a server is a second


def test_cache_variables_are_expanded_on_the_node(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DFER_TEST_SCRATCH", raising=False)
    arguments = [f"data.shards={shared.as_uri()}", "data.cache=$DFER_TEST_SCRATCH/dfer", *SMALL]
    run, _ = open_run(
        tmp_path, "run", "demo", arguments, (), None, 1
    )  # on a login node, where it is not set
    config = read_config(run.config)
    index = open_index(config.data)
    plan = EpochPlan(all_clips(index, index.train_shards(1)), 0, 0, 8, 2)
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv("DFER_TEST_SCRATCH", value)
        with pytest.raises(
            UserError,
            match=r"data\.cache=\$DFER_TEST_SCRATCH/dfer: \$DFER_TEST_SCRATCH is not set here",
        ):
            check_cache(index, plan, range(1), 1)
    monkeypatch.setenv("DFER_TEST_SCRATCH", str(tmp_path / "disk"))
    check_cache(index, plan, range(1), 1)
    index.sidecar(0)
    assert len(list((tmp_path / "disk" / "dfer").glob("*.parquet"))) == 1


def test_verify_and_plan_read_the_folder_of_a_file_url(
    shared: Path, tiny_shards: Index, tmp_path: Path
) -> None:
    assert "60 clips: no file is damaged" in dfer("verify", shared.as_uri(), cwd=tmp_path).stdout
    (shared / f"{Path(tiny_shards.shards[0].file).stem}.landmarks.tar").write_bytes(
        b"x"
    )  # no server can be asked for its like
    done = dfer("verify", shared.as_uri(), cwd=tmp_path)
    assert done.returncode == 1 and "landmarks" in done.stdout
    arguments = [
        "plan",
        "demo",
        "model.backbone=tiny",
        "model.pretrained=none",
        f"data.shards={shared.as_uri()}",
        "data.cache=$UNSET",
    ]
    done = dfer(*arguments, cwd=tmp_path)
    assert done.returncode == 0 and "folds of 48 clips" in " ".join(done.stdout.split()), (
        done.stdout + done.stderr
    )
