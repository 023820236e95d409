"""Ask a real ``mlflow models serve`` of an exported model over HTTP."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfer_dist.inference.export import export
from dfer_dist.inference.exported import CARD, load
from dfer_dist.inference.predict import predict_video
from dfer_dist.inference.pyfunc_inputs import SERVE_VIDEOS
from launch.processes import free_port
from tests.helpers.data.videos import encode
from tests.helpers.models.official_checkpoints import OTHERS, ours

pytestmark = pytest.mark.tracking


@dataclass(frozen=True)
class ModelServer:
    """An exported model, a video next to it, and the address of the model's server."""

    root: Path
    url: str

    def ask(self, **request: Any) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer of the server."""
        header = {"Content-Type": "application/json"}
        body = json.dumps(request).encode()
        try:
            asked = urllib.request.Request(f"{self.url}/invocations", body, header)
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as e:
            return e.code, json.load(e)

    def predict(self, **request: Any) -> np.ndarray:
        """Return the probabilities [N, C] that the server answers."""
        status, answer = self.ask(**request)
        assert status == 200, answer
        return rows(answer)


def rows(answer: dict[str, Any]) -> np.ndarray:
    assert [list(row) for row in answer["predictions"]] == [list(OTHERS[1][1])] * len(
        answer["predictions"]
    )
    return np.array([list(row.values()) for row in answer["predictions"]])


@contextmanager
def serve(root: Path, **environment: str) -> Iterator[ModelServer]:
    """Serve the model in ``root`` in processes of their own group, from outside the checkout."""
    port = free_port()
    options = ["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    command = [sys.executable, "-P", "-m", "mlflow", "models", "serve", "-m", "model", *options]
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", SERVE_VIDEOS)}
    # MLflow starts uvicorn by its name
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    env |= {"MLFLOW_DISABLE_TELEMETRY": "true", **environment}
    log = root / f"serve-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=root, env=env, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        server = ModelServer(root, f"http://127.0.0.1:{port}")
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"{server.url}/ping", timeout=2).close()
                break
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.25)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("server")
    ours(root / "checkpoint", *OTHERS[1])
    export(root / "checkpoint", root / "model", [])
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (40, 5, 6, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    encode(root / "a.mp4", frames)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ModelServer]:
    with serve(root) as server:
        yield server


def test_videos_in_base64_are_predicted(server: ModelServer) -> None:
    model = load(server.root / "model", device="cpu")
    video = base64.b64encode((server.root / "a.mp4").read_bytes()).decode()
    whole = predict_video(model, server.root / "a.mp4").overall
    table = {"columns": ["video"], "data": [[video], [video]]}
    for request in (
        {"instances": [video, video]},
        {"inputs": [f"data:video/mp4;base64,{video}", video]},
        {"dataframe_split": table},
        {"dataframe_records": [{"clip": video}, {"clip": video}]},
    ):
        np.testing.assert_allclose(server.predict(**request), [whole, whole], atol=1e-6)
    windows = predict_video(model, server.root / "a.mp4", window=0.5, step=0.25).overall
    assert np.abs(windows - whole).max() > 1e-3
    params = {"window": 0.5, "step": 0.25, "faces": False}
    np.testing.assert_allclose(
        server.predict(instances=[video], params=params), [windows], atol=1e-6
    )


def test_pixels_are_predicted(server: ModelServer) -> None:
    model = load(server.root / "model", device="cpu")
    clips = np.random.default_rng(1).integers(0, 256, (2, 5, 12, 10, 3), dtype=np.uint8)
    expected = model.probabilities(clips)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    for key in ("instances", "inputs"):
        np.testing.assert_allclose(server.predict(**{key: clips.tolist()}), expected, atol=1e-6)
    # of other lengths, and next to a video
    video = base64.b64encode((server.root / "a.mp4").read_bytes()).decode()
    mixed = server.predict(instances=[clips[0].tolist(), clips[1, :3].tolist(), video])
    np.testing.assert_allclose(mixed[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(mixed[1], model.probabilities(clips[1:, :3])[0], atol=1e-6)


def test_errors_are_one_line(server: ModelServer) -> None:
    path = str(server.root / "a.mp4")
    noise = base64.b64encode(np.random.default_rng(0).bytes(3000)).decode()
    no_paths = "is neither a base64 video nor one in the folder that this server may open"
    table = {"columns": ["video"], "data": [[path]]}
    for request, message in (
        ({"instances": [path]}, f"input 1, {path!r}, {no_paths}"),
        ({"dataframe_split": table}, no_paths),
        ({"inputs": [noise]}, "input 1 cannot be read as a video: Invalid data found"),
        (
            {"inputs": [[[[[256, 0, 0]]]]]},
            "input 1 is int64 [1, 1, 1, 3]: give frames, integers from 0 to 255",
        ),
        ({"inputs": [[[[[0.5, 0, 0]]]]]}, "input 1 is float64 [1, 1, 1, 3]: give frames"),
        ({"inputs": [[[[0, 0, 0]]]]}, "input 1 is int64 [1, 1, 3]: give frames"),
    ):
        status, answer = server.ask(**request)
        assert status == 400
        assert message in answer["message"] and "\n" not in answer["message"]
        assert len(answer["message"]) < 400 and "stack_trace" not in answer


def test_lines_of_the_card_are_answered(server: ModelServer) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl here: apt-get install curl")
    model = load(server.root / "model", device="cpu")
    (block,) = re.findall(
        r"```bash\n(mlflow .*?)```", (server.root / "model" / CARD).read_text(), re.S
    )
    start, *lines = block.replace("http://127.0.0.1:5001", server.url).splitlines()
    assert start == "mlflow models serve -m . --env-manager local -h 127.0.0.1 -p 5001"
    shutil.copy(server.root / "a.mp4", server.root / "model")
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=server.root / "model", capture_output=True, text=True
    )
    (server.root / "model" / "a.mp4").unlink()
    decoder = json.JSONDecoder()
    example, end = decoder.raw_decode(done.stdout)
    video, _ = decoder.raw_decode(done.stdout, end)
    black = model.probabilities(np.zeros((1, 2, 4, 4, 3), np.uint8))
    np.testing.assert_allclose(rows(example), black, atol=1e-6)
    whole = predict_video(model, server.root / "a.mp4").overall
    np.testing.assert_allclose(rows(video), [whole], atol=1e-6)


def test_paths_in_the_allowed_folder_are_predicted(root: Path) -> None:
    (root / "videos").mkdir()
    shutil.copy(root / "a.mp4", root / "videos" / "b.mp4")
    whole = predict_video(load(root / "model", device="cpu"), root / "a.mp4").overall
    path = str(root / "videos" / "b.mp4")
    with serve(root, **{SERVE_VIDEOS: str(root / "videos")}) as server:
        for request in (
            {"instances": [path]},
            {"inputs": ["b.mp4"]},
            {"dataframe_split": {"columns": ["path"], "data": [[path]]}},
        ):
            np.testing.assert_allclose(server.predict(**request), [whole], atol=1e-6)
        for outside in (str(root / "a.mp4"), "../a.mp4", "/etc/hostname"):
            status, answer = server.ask(instances=[outside])
            assert status == 400
            assert f"start it with {SERVE_VIDEOS}=FOLDER" in answer["message"]
