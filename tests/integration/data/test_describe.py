"""``dfer describe`` against a real server: what is sent, stored, and requested again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dfer_dist.data.captions.endpoint import KEY_VARIABLE
from dfer_dist.data.captions.store import FILE, parse, read
from dfer_dist.data.shards.index import Index, load_index
from tests.helpers.data.remote import wait_until
from tests.helpers.data.vision_server import PLAIN, Vision, answer, completion, send, status
from tests.helpers.forked import Done, Forked
from tests.helpers.paths import DFER

SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def vision() -> Iterator[Vision]:
    vision = Vision()
    yield vision
    vision.close()


@pytest.fixture
def shards(tiny_shards: Index, tmp_path: Path) -> Path:
    """A copy of ``tiny_shards`` of its own: 60 clips of 3 to 30 frames."""
    return Path(shutil.copytree(tiny_shards.root, tmp_path / "shards"))  # type: ignore[arg-type]


def command(vision: Vision, shards: Path, *options: object) -> list[str]:
    fixed = [
        "describe",
        str(shards),
        "--endpoint",
        vision.url,
        "--model",
        "eye-1",
        "--share-frames",
        "--frames",
        "4",
    ]
    return [DFER, *fixed, *map(str, options)]


def environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    return {**inherited, "COLUMNS": "200", "NO_PROXY": "127.0.0.1", "DFER_DEBUG": "", **more}


def run(argv: list[str], **env: str) -> Done:
    return Forked(argv, environment(**env)).wait(timeout=120)


def texts(shards: Path) -> dict[str, str]:
    stored = read(load_index(shards))
    (source,) = stored.sources.values()
    return stored.of(source)


def test_describe_requests_every_clip_once(vision: Vision, shards: Path) -> None:
    before = {f.name: f.read_bytes() for f in shards.iterdir()}
    done = run(command(vision, shards, "--concurrency", 3))
    assert (done.returncode, done.stderr) == (0, "")
    assert "237 frames of 60 clips go to" in done.stdout and "answered" in done.stdout
    assert len(vision.requests) == 60 and set(vision.asked().values()) == {1}
    assert vision.most <= 3
    assert set(texts(shards).values()) == {PLAIN}
    assert {f.name: f.read_bytes() for f in shards.iterdir() if f.name != FILE} == before
    again = run(command(vision, shards))
    assert again.returncode == 0 and len(vision.requests) == 60
    other = run(
        command(vision, shards, "--body", '{"temperature": 0.5, "max_tokens": null}', "--limit", 2)
    )
    assert other.returncode == 0 and len(vision.requests) == 62
    assert vision.requests[-1]["temperature"] == 0.5 and "max_tokens" not in vision.requests[-1]


def test_describe_sends_stored_frames_without_label(
    vision: Vision, tiny_source: Path, tmp_path: Path
) -> None:
    import base64

    from dfer_dist.data.packing.packer import pack
    from dfer_dist.data.sources.datasets import read_dataset
    from tests.helpers.data.vision_server import images

    root = tmp_path / "Movies"
    for i in range(10):
        for name in ("Happy", "Sad"):
            shutil.copytree(tiny_source / "frames" / "00001", root / name / f"clip{i}")
    listing = read_dataset("folder", root)
    pack(listing.records, listing.name, tmp_path / "own", classes=listing.classes, workers=1)
    done = run(command(vision, tmp_path / "own", "--split", "fold1", "--limit", 1))
    assert done.returncode == 0, done.stderr
    (request,) = vision.requests
    stored = [f.read_bytes() for f in sorted((tiny_source / "frames" / "00001").iterdir())]
    assert len(stored) == 14
    sent = [base64.b64decode(url.partition(",")[2]) for url in images(request)]
    assert sent == [stored[i] for i in (1, 5, 8, 12)]
    rest = (
        str({**request, "messages": request["messages"][0]})
        + request["messages"][1]["content"][0]["text"]
    )
    assert not any(word in rest.lower() for word in ("happ", "sad", "clip0", "movies"))


def test_describe_sends_nothing_without_share_frames(vision: Vision, shards: Path) -> None:
    done = run([word for word in command(vision, shards) if word != "--share-frames"])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert (
        f"237 frames of 60 clips would go to {vision.url}/chat/completions" in done.stderr
        and "--share-frames" in done.stderr
    )
    assert vision.requests == []
    assert not (shards / FILE).exists()


def test_describe_reports_failed_clips_and_retries_them(vision: Vision, shards: Path) -> None:
    vision.faults = [status(400)] * 3 + [status(500)] * 2
    done = run(command(vision, shards, "--tries", 1, "--concurrency", 1, "--limit", 12))
    assert done.returncode == 1
    assert (
        "failed: answers 400" in done.stdout
        and "failed: answers 500" in done.stdout
        and "not now" in done.stdout
    )
    assert len(texts(shards)) == 7
    assert run(command(vision, shards, "--limit", 5)).returncode == 0
    counts = sorted(vision.asked().values())
    assert counts == [1] * 7 + [2] * 5


def test_describe_escapes_server_text_for_the_terminal(vision: Vision, shards: Path) -> None:
    vision.faults = [lambda request: send(request, b"[/nothing] [red]no\x1b[2J\x07 image", 400)]
    done = run(command(vision, shards, "--tries", 1, "--concurrency", 1, "--limit", 1))
    assert done.returncode == 1 and "[/nothing] [red]no" in done.stdout
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout


@pytest.mark.parametrize(("fault", "asked"), [(401, 1), (400, 20)])
def test_describe_stops_when_every_clip_fails(
    vision: Vision, shards: Path, fault: int, asked: int
) -> None:
    vision.faults = [status(fault)] * 60
    done = run(command(vision, shards, "--concurrency", 1, "--tries", 1))
    assert done.returncode == 1
    assert asked <= len(vision.requests) <= asked + 2  # one is on its way when it is noticed
    assert "not asked any more" in done.stdout


def test_describe_retries_only_the_truncated_answer(vision: Vision, shards: Path) -> None:
    vision.faults = [answer(completion("The brows", "length"))]
    done = run(command(vision, shards, "--concurrency", 1, "--limit", 3))
    assert done.returncode == 1 and "answer longer than allowed" in done.stdout
    vision.requests.clear()
    assert (
        run(command(vision, shards, "--limit", 1, "--body", '{"max_tokens": 1000}')).returncode == 0
    )
    assert [request["max_tokens"] for request in vision.requests] == [1000]
    assert len(texts(shards)) == 3


def test_describe_does_not_send_damaged_clip(vision: Vision, shards: Path) -> None:
    tar = sorted(shards.glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[3] ^= 1  # in the name of its first clip's first member
    tar.write_bytes(data)
    done = run(command(vision, shards))
    assert done.returncode == 1 and "failed: damaged clip" in done.stdout
    assert len(vision.requests) == 59 == len(texts(shards))


def test_describe_killed_loses_no_answer(vision: Vision, shards: Path) -> None:
    first = subprocess.Popen(
        command(vision, shards, "--concurrency", 3), env=environment(), stdout=subprocess.DEVNULL
    )
    file = shards / FILE
    wait_until(lambda: file.exists() and file.read_bytes().count(b"\n") >= 15, seconds=60)
    vision.hold.clear()  # answers stay back: what is on its way is known
    wait_until(lambda: vision._now == 3)
    time.sleep(0.2)  # what was answered before is written now
    first.send_signal(signal.SIGKILL)
    first.wait()
    stored = parse(file.read_bytes(), "f")
    (answered,) = stored.texts.values()
    assert 14 <= len(answered) < 57
    before = len(vision.requests)
    assert before == len(answered) + 3
    vision.hold.set()
    done = run(command(vision, shards))
    assert done.returncode == 0
    assert len(vision.requests) == before + 60 - len(answered)
    assert (
        sorted(vision.asked().values()) == [1] * 57 + [2] * 3
    )  # only those that had no answer at the kill
    assert len(texts(shards)) == 60 and answered.items() <= texts(shards).items()
    assert len(file.read_bytes().splitlines()) == 61


def test_describe_interrupted_ends_at_once(vision: Vision, shards: Path) -> None:
    vision.hold.clear()
    # a job in the background ignores it
    handle_sigint = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command(vision, shards, "--concurrency", 2),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=handle_sigint,
    )
    wait_until(lambda: len(vision.requests) == 2, seconds=60)
    process.send_signal(signal.SIGINT)
    # the server still holds its answers back, up to --timeout
    stdout, _ = process.communicate(timeout=60)
    vision.hold.set()
    assert process.returncode == 130
    assert "run the same command to resume" in stdout
    assert len(vision.requests) == 2


def test_describe_rate_holds_over_threads(vision: Vision, shards: Path) -> None:
    done = run(command(vision, shards, "--concurrency", 8, "--per-minute", 600, "--limit", 12))
    assert done.returncode == 0
    assert (
        max(vision.times) - min(vision.times) >= 0.9
    )  # 11 gaps of 0.1 s, less what the server takes to notice
    vision.seconds = 0.2
    assert run(command(vision, shards, "--concurrency", 4, "--limit", 16)).returncode == 0
    assert vision.most == 4


def test_describe_leaks_no_credential(vision: Vision, shards: Path) -> None:
    vision.text = lambda _: f"The key is {SECRET}. The brows rise."
    vision.faults = [status(500, WWW_Authenticate=SECRET), status(401, Note=SECRET)]
    options = ("--concurrency", 1, "--tries", 1, "--limit", 4)
    outputs = [
        run([DFER, "--debug", *command(vision, shards, *options)[1:]], **{KEY_VARIABLE: SECRET})
        for _ in range(2)
    ]
    assert [done.returncode for done in outputs] == [1, 0]
    assert {headers["Authorization"] for headers in vision.headers} == {f"Bearer {SECRET}"}
    assert len(texts(shards)) == 4
    assert not any(SECRET in done.stdout + done.stderr for done in outputs)
    assert not any(
        SECRET.encode() in f.read_bytes() for f in shards.parent.rglob("*") if f.is_file()
    )


def test_describe_counts_label_words(vision: Vision, shards: Path) -> None:
    answers = iter(["The face is angry.", "The brows and lids come down, suggesting anger.", PLAIN])
    vision.text = lambda _: next(answers)
    done = run(command(vision, shards, "--limit", 3, "--concurrency", 1))
    assert "2 of 3 have label words" in done.stdout and "1 have nothing left" in done.stdout


def test_describe_imports_captions(shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text("00001.mp4\tanger\t眉头紧蹙。\tThe deep frown.\n")
    done = run([DFER, "describe", str(shards), "--import", str(file)])
    assert done.returncode == 0, done.stderr
    assert "(captions, en): 1 captions added, 0 there before; 59 clips have none" in done.stdout
    assert "(captions, zh)" in done.stdout


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--model", "m"], "--endpoint URL and --model NAME"),
        (["--endpoint", "http://h/v1", "--import", "a.csv"], "give one of them"),
        (["--endpoint", "http://me:hunter2@h/v1", "--model", "m"], "DFER_ENDPOINT_KEY"),
        (["--endpoint", "http://h/v1", "--model", "m", "--body", "{"], "--body"),
        (
            ["--endpoint", "http://h/v1", "--model", "m", "--body", '{"stream": true}'],
            "without model, messages and stream",
        ),
        (["--endpoint", "http://h/v1", "--model", "m", "--split", "train"], "fold1, fold2"),
    ],
)
def test_describe_wrong_options_give_one_line(
    tiny_shards: Index, options: list[str], part: str
) -> None:
    done = run([DFER, "describe", str(tiny_shards.root), *options])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert part in done.stderr and "hunter2" not in done.stderr


def test_describe_imports_no_torch(tiny_shards: Index) -> None:
    code = (
        "import sys\n"
        "from dfer_dist.data.captions.generate import open_folder, describe\n"
        "import dfer_dist.data.captions.imports\n"
        "from dfer_dist.data.shards.reader import ClipReader\n"
        f"index = open_folder({str(tiny_shards.root)!r})\n"
        "assert ClipReader(index).jpegs(0, 0)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
