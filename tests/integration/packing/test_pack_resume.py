"""Resuming a stopped run of ``dfer pack``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.dfer_clip_lists import read_lists
from tests.helpers.forked import Forked
from tests.helpers.paths import DFER

JPEG_40_48 = simplejpeg.encode_jpeg(np.zeros((40, 48, 3), np.uint8))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in folder.iterdir() if f.is_file()
    }


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.mark.parametrize("damage", ["no tar", "longer tar", "sidecar", "record", "frames"])
def test_resume_keeps_complete_shards_of_unchanged_files(
    damage: str, tiny_source: Path, tiny_shards: Index, tmp_path: Path
) -> None:
    source = shutil.copytree(tiny_source / "frames", tmp_path / "frames")
    records = read_lists("dfew", source, tiny_source / "lists")
    out = tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done == 41:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(records, "dfew", out, 5, workers=1, progress=stop)
    before = state(out)
    finished = sorted(f.removesuffix(".json") for f in os.listdir(out / ".packing"))
    assert 9 <= len(finished) <= 10
    name = finished[3]
    if damage == "no tar":
        (out / name).unlink()
    elif damage == "longer tar":
        with (out / name).open("ab") as f:
            f.write(bytes(512))
    elif damage == "sidecar":
        data = bytearray((out / name).with_suffix(".parquet").read_bytes())
        data[50] ^= 1
        (out / name).with_suffix(".parquet").write_bytes(data)
    elif damage == "record":
        (out / ".packing" / f"{name}.json").write_text('{"version": 1, "digest": ')
    else:
        key = json.loads(next(iter(read_json_members(out / name))))["key"]
        (source / key / "00001.jpg").write_bytes(JPEG_40_48)
    pack(records, "dfew", out, 5, workers=1)
    after = state(out)
    rewritten = {f for f in before if f.endswith(".tar") and f[0] != "." and before[f] != after[f]}
    assert rewritten == {name}
    assert not [f for f in os.listdir(out) if f[0] == "."]
    if damage != "frames":
        assert files(out) == files(tiny_shards.root)


def read_json_members(tar: Path) -> list[bytes]:
    with tarfile.open(tar) as opened:
        files = [opened.extractfile(member) for member in opened if member.name.endswith(".json")]
        return [file.read() for file in files if file is not None]


def start_pack(source: Path, out: Path, workers: int) -> Forked:
    command = [DFER, "pack", "--dataset", "dfew", "--out", str(out)]
    command += ["--root", str(source / "frames"), "--lists", str(source / "lists")]
    command += ["--clips-per-shard", "2", "--workers", str(workers)]
    return Forked(command, os.environ, new_session=True)


def test_killed_pack_resumes_to_the_same_bytes(tiny_source: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny_source / "lists", source / "lists")
    (source / "frames").mkdir()
    # 15 times as many frames, so that there is time to kill
    for clip in (tiny_source / "frames").iterdir():
        (source / "frames" / clip.name).mkdir()
        for i in range(15):
            for frame in clip.iterdir():
                (source / "frames" / clip.name / f"{i:03d}{frame.name}").hardlink_to(frame)
    process = start_pack(source, out, 2)
    deadline = time.monotonic() + 120
    while len(list(out.glob(".packing/[!.]*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60).returncode == -signal.SIGKILL
    # workers exit with their parent
    while running_processes(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    remaining = running_processes(process.pid)
    for worker in remaining:
        os.kill(int(worker), signal.SIGKILL)
    assert not remaining
    finished = [f.name.removesuffix(".json") for f in out.glob(".packing/[!.]*.json")]
    assert 2 <= len(finished) < 30 and not (out / "index.json").exists()
    before = state(out)
    done = start_pack(source, out, 1).wait(timeout=120)
    assert done.returncode == 0, done.stderr
    assert "60 clips in 30 shards" in done.stdout and "nothing to do" not in done.stdout
    assert all(state(out)[name] == before[name] for name in finished)
    undisturbed = tmp_path / "undisturbed"
    pack(read_lists("dfew", source / "frames", source / "lists"), "dfew", undisturbed, 2, workers=1)
    assert files(out) == files(undisturbed)
    before = state(out)
    done = start_pack(source, out, 1).wait(timeout=120)
    assert done.returncode == 0, done.stderr
    assert "already packed, nothing to do: 60 clips in 30 shards" in done.stdout
    assert state(out) == before


def running_processes(session: int) -> list[str]:
    """Return the process ids of a session."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(process.name)
    return found
