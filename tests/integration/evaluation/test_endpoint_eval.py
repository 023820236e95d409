"""``dfer eval --endpoint`` against a real server, and its comparison with a trained run."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from dfer_dist.config.load import load_config
from dfer_dist.data.captions.endpoint import KEY_VARIABLE
from dfer_dist.data.loading.frame_sampling import eval_frames
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import FoldResult
from dfer_dist.utils.files import read_json
from dfer_dist.utils.journal import parse_journal
from tests.helpers.cli import check_refusal, invoke
from tests.helpers.data.remote import wait_until
from tests.helpers.data.vision_server import (
    Fault,
    Vision,
    answer,
    completion,
    images,
    stall,
    status,
)
from tests.helpers.paths import DFER

SETTINGS = ["data.num_frames=4", "tracking.enabled=false"]


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vision]:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    vision = Vision()
    yield vision
    vision.close()


def command(vision: Vision, index: Index, *options: object) -> list[object]:
    fixed = ["--endpoint", vision.url, "--model", "org/eye-1", "--share-frames", "--name", "eye"]
    return ["eval", "demo", *fixed, *options, f"data.shards={index.root}", *SETTINGS]


def clips(index: Index) -> dict[tuple[str, ...], tuple[str, str]]:
    """Return key and class of each clip by its frames as they are sent."""
    reader, data = ClipReader(index), load_config("demo", SETTINGS).data
    found = {}
    for shard, entry in enumerate(index.shards):
        counts = index.sidecar(shard)["frames"].to_pylist()
        for row in range(entry.clips):
            jpegs = reader.jpegs(shard, row)
            wanted = dict.fromkeys(eval_frames(counts[row], data, 1)[0].tolist())
            urls = (base64.b64encode(jpegs[frame]).decode() for frame in wanted)
            name = index.classes[reader.label(shard, row)]
            found[tuple(f"data:image/jpeg;base64,{url}" for url in urls)] = (
                reader.key(shard, row),
                name,
            )
    return found


def counted(text: str) -> Fault:
    """Return an answer with its numbers of tokens."""
    usage = {"prompt_tokens": 100, "completion_tokens": 7}
    return answer(json.dumps({**json.loads(completion(text)), "usage": usage}).encode())


# Of clip i the (i % 10)-th, given its class and another one.
SCRIPT: list[Callable[[str, str], str | Fault]] = [
    lambda truth, _: f'{{"class": "{truth}"}}',
    lambda truth, _: truth.upper(),
    lambda truth, _: f"The expression is {truth}.",
    lambda truth, _: counted(truth),
    lambda truth, _: counted(truth),
    lambda _, other: other,
    lambda _, __: answer(completion(None, refusal="I do not judge people.")),
    lambda _, __: "I'm sorry, but I can't help with that.",
    lambda truth, other: f"{truth} or {other}",
    lambda _, __: status(500),
]
# Instead of that, the first time that clips 10 to 15 are sent.
PASSING: list[Fault] = [
    status(429, Retry_After="0"),
    status(503),
    stall,
    answer(b"{"),
    answer(b"[1]"),
    answer(b'{"choices": []}'),
]


def play(vision: Vision, index: Index) -> set[str]:
    """Let the server follow the script; return the keys of the clips that it sends twice."""
    known = clips(index)
    keys = [key for key, _ in known.values()]
    faults = dict(zip(keys[10:], PASSING, strict=False))
    twice = {*faults, *keys[9::10]}

    def reply(request: dict) -> str | Fault:
        key, truth = known[images(request)]
        if key in faults:
            return faults.pop(key)
        other = next(name for name in index.classes if name != truth)
        return SCRIPT[keys.index(key) % 10](truth, other)

    vision.text = reply
    return twice


def test_eval_endpoint_is_compared_with_a_trained_run(
    vision: Vision, tiny_shards: Index, trained: RunDir, tmp_path: Path
) -> None:
    twice = play(vision, tiny_shards)
    options = ["--tries", 2, "--timeout", 1, "--concurrency", 6]
    done = invoke(*command(vision, tiny_shards, *options), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "failed: answers 500" in done.stdout
    run = RunDir(tmp_path / "runs" / "eye")
    folds = [FoldResult.read(run.fold(k).result) for k in range(1, 6)]
    known = clips(tiny_shards)
    asked = {known[frames][0]: count for frames, count in vision.asked().items()}
    assert asked == {key: 1 + (key in twice) for key, _ in known.values()}
    totals = [sum(x) for x in zip(*(f.without_class.values() for f in folds), strict=True)]
    assert totals == [12, 6, 6]
    assert sum(f.n for f in folds) == 60
    assert sum(f.confusion[i][i] for f in folds for i in range(7)) == 30
    assert sum(f.endpoint.prompt_tokens for f in folds if f.endpoint) == 1200
    # 48 answers at once, six after a fault
    assert "54 answers are stored, of 60 requests, 1,200 prompt tokens and 84" in done.stdout
    note = "no class for 24 of 60 clips (12 refused, 6 unreadable, 6 failed)"
    assert note in " ".join(done.stdout.split())

    first = RunDir(Path(shutil.copytree(trained.root, tmp_path / "runs" / "one")))
    done = invoke("report", first.root, run.root, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (item,) = read_json(first.root / "compared" / "comparison.json")["comparisons"]
    tables = [pq.read_table(r.fold(2).predictions).to_pydict() for r in (first, run)]
    assert tables[0]["key"] == tables[1]["key"]
    logits = tables[0]["logits"]
    rows = zip(tables[0]["label"], logits, tables[1]["predicted"], strict=True)
    right = [(x.index(max(x)) == y, p == y) for y, x, p in rows]
    gained, lost = right.count((False, True)), right.count((True, False))
    found = item["paired"]["mcnemar"]
    assert (found["gained"], found["lost"]) == (gained, lost)
    assert found["p"] == pytest.approx(binomtest(gained, gained + lost).pvalue)
    war = item["paired"]["difference"]["war"]
    assert war["value"] == pytest.approx(100 * (gained - lost) / 12)
    assert war["low"] < war["value"] < war["high"]
    assert any("not known" in text for text in item["warnings"])
    assert any("count as wrong" in text for text in item["warnings"])
    assert "gives no probabilities" in run.report.read_text()
    text = (first.root / "compared" / "comparison.md").read_text()
    assert "org/eye-1 at an endpoint" in text
    assert "(nan)" not in text
    clip = (first.root / "compared" / "clips-eye.csv").read_text().splitlines()[1].split(",")
    assert float(clip[4]) > 0
    assert clip[6] == ""


def test_eval_endpoint_killed_sends_no_answered_clip_again(
    vision: Vision, tiny_shards: Index, tmp_path: Path
) -> None:
    vision.text = lambda _: "anger"
    argv = [DFER, *map(str, command(vision, tiny_shards, "--concurrency", 3))]
    first = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.DEVNULL)
    run = RunDir(tmp_path / "runs" / "eye")
    wait_until(
        lambda: run.answers.exists() and run.answers.read_bytes().count(b"\n") >= 15, seconds=60
    )
    vision.hold.clear()  # answers stay back: what is on its way is known
    wait_until(lambda: vision._now == 3)
    time.sleep(0.2)  # what was answered before is written now
    first.send_signal(signal.SIGKILL)
    first.wait()
    answered = len(parse_journal(run.answers.read_bytes(), "f", "c")) - 1
    assert 14 <= answered < 57
    vision.hold.set()
    done = invoke(*command(vision, tiny_shards), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # only those on their way at the kill
    assert sorted(vision.asked().values()) == [1] * 57 + [2] * 3
    assert sum(FoldResult.read(run.fold(k).result).n for k in range(1, 6)) == 60


def test_eval_endpoint_refuses_in_one_line(
    vision: Vision, tiny_shards: Index, tmp_path: Path
) -> None:
    argv = command(vision, tiny_shards)
    without = [word for word in argv if word != "--share-frames"]
    done = invoke(*without, cwd=tmp_path)
    check_refusal(done, "237 frames of 60 clips would go to", "--share-frames allows it")
    assert not vision.requests
    assert not (tmp_path / "runs").exists()
    vision.faults = [status(401)] * 9
    done = invoke(*argv, "--concurrency", 1, cwd=tmp_path)
    check_refusal(done, "answers 401", "not now", "59 more clips are not sent", "0 answers")
    assert len(vision.requests) == 1
    for options, part in (
        (["--zero-shot"], "leave --ambiguous"),
        (["--body", "[]"], "--body"),
        (["--name", "a/b"], "--name 'a/b'"),
        (["--fold", 6], "fold 6 is out of range"),
    ):
        check_refusal(invoke(*argv, *options, cwd=tmp_path), part)
    check_refusal(invoke("eval", "demo", "--model", "m", cwd=tmp_path), "--endpoint URL")
    run = tmp_path / "runs" / "eye"
    check_refusal(invoke("report", run, "--errors", 3, cwd=tmp_path), "no finished fold")
    check_refusal(invoke("resume", run, cwd=tmp_path), "give its dfer eval command again")
