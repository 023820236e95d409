"""``dfer serve``: its page in a browser with a fake camera, and the limits of its server."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfer_dist.inference.exported import load
from dfer_dist.inference.predict import predict_video
from dfer_dist.inference.serving.app import MAX_BYTES, MAX_REQUESTS
from tests.helpers.cli import dfer
from tests.helpers.data.clips import HUGE_IMAGE
from tests.helpers.data.videos import Pose, draw, encode
from tests.helpers.forked import Forked
from tests.helpers.models.exported import Case
from tests.helpers.paths import DFER

CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of a drawn face that moves."""
    heads = [[Pose(130 + t, 90, 0.9, t / 4)] for t in range(100)]
    return encode(tmp_path_factory.mktemp("videos") / "face.mp4", draw(heads, 320, 240))


@pytest.fixture(scope="module")
def server(exported: Case) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = Forked([DFER, "serve", str(exported.out), "--port", str(port)], os.environ)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/ping")
            break
        except OSError:
            assert time.monotonic() < deadline and process.is_running
            time.sleep(0.1)
    yield url
    process.send_signal(signal.SIGINT)
    process.wait(30)


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def test_answer_equals_a_prediction(server: str, exported: Case, video: Path) -> None:
    status, answer = post(f"{server}/predict?faces=1", video.read_bytes())
    expected = predict_video(load(exported.out, device="cpu"), video, faces=True)
    assert status == 200
    assert answer["probabilities"] == expected.probabilities.tolist()
    assert answer["spans"] == expected.spans.tolist() and len(answer["spans"]) == 2
    assert answer["overall"] == expected.overall.tolist()
    assert len(answer["pictures"]) == 8


def test_mlflow_protocol_gives_the_same(server: str, video: Path) -> None:
    body = json.dumps({"inputs": [base64.b64encode(video.read_bytes()).decode()]}).encode()
    status, answer = post(f"{server}/invocations", body, **{"Content-Type": "application/json"})
    _, own = post(f"{server}/predict", video.read_bytes())
    assert status == 200
    assert list(answer["predictions"][0].values()) == pytest.approx(own["overall"])
    assert list(answer["predictions"][0]) == own["classes"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the video is empty"),
        (b"no video at all", "the video is a text file"),
        (bytes(range(256)) * 40, "the video cannot be read as a video"),
        (HUGE_IMAGE, "the video cannot be decoded (it has more than 89 million pixels)"),
    ],
)
def test_garbage_is_refused_in_one_line(server: str, body: bytes, reason: str) -> None:
    status, answer = post(f"{server}/predict", body)
    assert status == 400 and reason in answer["error"]
    assert "\n" not in answer["error"] and "/tmp" not in answer["error"]


@pytest.mark.parametrize(
    ("target", "status", "reason"),
    [
        ("predict?faces=zzz&explain=2", 422, "faces=zzz: Input should be a valid boolean"),
        ("predicted", 404, "POST /predicted: Not Found"),
        ("model", 405, "POST /model: Method Not Allowed"),
    ],
)
def test_wrong_requests_are_refused_in_one_form(
    server: str, target: str, status: int, reason: str
) -> None:
    found, answer = post(f"{server}/{target}", b"")
    assert found == status and list(answer) == ["error"] and reason in answer["error"]


def test_ten_minutes_are_refused_before_they_are_decoded(server: str, tmp_path: Path) -> None:
    frames = (np.full((32, 32, 3), 100, np.uint8) for _ in range(600))
    long = encode(tmp_path / "long.mp4", frames, times=[1000 * i for i in range(600)])
    status, answer = post(f"{server}/predict", long.read_bytes())
    assert status == 400
    assert "the video lasts 600 s: at most 120 are accepted" in answer["error"]


def test_too_large_a_file_is_refused_before_it_is_read(server: str) -> None:
    address = ("127.0.0.1", int(server.rpartition(":")[2]))
    with socket.create_connection(address, timeout=30) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: {address[0]}\r\nContent-Length: {MAX_BYTES + 1}"
        connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(partial(connection.recv, 4096), b"")).decode()
    assert "413" in answer and "at most 256 are accepted" in answer


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://example.org"}, {"Host": "example.org"}], ids=["page", "name"]
)
def test_other_sites_cannot_use_the_server(server: str, headers: dict[str, str]) -> None:
    status, answer = post(f"{server}/predict", b"", **headers)
    assert status == 403 and "example.org" in answer["error"]


def test_ten_at_a_time_are_answered_or_refused(server: str, video: Path) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: post(f"{server}/predict", video.read_bytes()), range(10)))
    counts = Counter(status for status, _ in answers)
    assert counts[200] >= MAX_REQUESTS and counts[200] + counts[503] == 10
    assert all("try again" in answer["error"] for status, answer in answers if status == 503)
    assert post(f"{server}/predict", video.read_bytes())[0] == 200


def test_browser_predicts_a_file_and_the_camera(server: str, video: Path, tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    from mlflow_page import browser_page

    with browser_page(CAMERA) as page:
        page.goto(server)
        page.get_by_text("7 classes").wait_for()
        assert page.is_checked("#faces")
        page.check("#explain")
        page.set_input_files("#file", str(video))
        page.get_by_role("heading", level=2).wait_for(timeout=60_000)
        assert re.fullmatch(r"\w+ 0\.\d\d, 4\.0 s", page.inner_text("#best"))
        assert page.locator("#bars .bar").count() == 7
        assert page.locator("#pictures img").count() == 8
        assert page.locator("#chart path").count() == 7
        assert page.evaluate("document.querySelector('#explained').naturalWidth") > 300
        page.set_viewport_size({"width": 420, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == 420
        if os.environ.get("DFER_PICTURES"):
            page.screenshot(path=f"{os.environ['DFER_PICTURES']}/serve.png", full_page=True)
        (tmp_path / "garbage.mp4").write_bytes(b"\0" * 5000)
        page.set_input_files("#file", str(tmp_path / "garbage.mp4"))
        page.get_by_text("cannot be read as a video").wait_for(timeout=60_000)
        assert not page.is_visible("#result")
        # the fake camera shows a clock, not a face
        page.uncheck("#faces")
        page.click("#camera")
        page.get_by_role("heading", level=2).wait_for(timeout=60_000)
        seconds = float(page.inner_text("#best").split()[-2])
        assert 2 < seconds < 6


def test_port_in_use_is_one_line(exported: Case) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        done = dfer("serve", exported.out, "--port", port, cwd=exported.out)
    assert done.returncode == 2
    assert f"--port {port}" in done.stderr and "Traceback" not in done.stderr
