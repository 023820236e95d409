"""An exported model behind HTTP: MLflow's protocol, and a page that predicts a video.

::

    GET  /                page: choose a video or use the camera
    POST /predict?faces=1 body: a video; answer: probabilities over time, and pictures of frames;
                          with explain=1 also one of what predictions rest on
    POST /invocations     MLflow's protocol, as ``mlflow models serve`` has it

One request is computed at a time, a few wait, and others are refused: a model is as fast as its
processor, and videos take memory. A page of another site cannot use the server, although it is open
in the same browser: the server looks at the headers Host and Origin.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import simplejpeg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from dfer_dist.data.video.decode import DamagedVideo
from dfer_dist.inference.exported import CARD, ExportedModel
from dfer_dist.inference.predict import MAX_EXPLAINED, VideoPrediction, predict_video
from dfer_dist.inference.pyfunc import PyfuncModel
from dfer_dist.inference.sources import FPS, Frames, open_frames
from dfer_dist.reporting.plots.scores import data_uri
from dfer_dist.utils.errors import UserError

MAX_BYTES = 256 << 20
MAX_SECONDS = 120.0
MAX_REQUESTS = 4  # one is computed, the others wait

_PAGE = Path(__file__).parents[1] / "templates" / "try_model.html"
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}

Next = Callable[[Request], Awaitable[Response]]


class _Refused(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status

    def answer(self) -> JSONResponse:
        return JSONResponse({"error": str(self)}, self.status)


def build_app(model: ExportedModel, is_local: bool = True) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    model : ExportedModel
    is_local : bool
        Answer only requests that name this machine by a loopback name.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.models import Model
    from mlflow.pyfunc import PyFuncModel, scoring_server

    pyfunc = PyFuncModel(Model.load(str(model.folder)), PyfuncModel(model))
    app: FastAPI = scoring_server.init(pyfunc)
    limits = _Limits(is_local)
    app.middleware("http")(limits)
    app.add_exception_handler(RequestValidationError, _answer_wrong_parameters)
    app.add_exception_handler(HTTPException, _answer_wrong_request)

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return _PAGE.read_text("utf-8")

    @app.get("/model")
    def about() -> dict[str, Any]:
        return {
            "name": model.folder.resolve().name,
            "method": model.info.method,
            "classes": model.classes,
            "card": (model.folder / CARD).read_text("utf-8"),
            "finds_faces": find_spec("dlib") is not None,
            "max_seconds": MAX_SECONDS,
            "max_bytes": MAX_BYTES,
        }

    @app.post("/predict")
    async def predict(request: Request, faces: bool = False, explain: bool = False) -> JSONResponse:
        body = await request.body()
        try:
            answer = await asyncio.to_thread(_predict, model, body, faces, explain)
        except UserError as e:
            return _Refused(400, str(e)).answer()
        return JSONResponse(answer)

    return app


async def _answer_wrong_parameters(request: Request, e: Exception) -> JSONResponse:
    """Answer in the form of the other errors, as :func:`_answer_wrong_request` does."""
    assert isinstance(e, RequestValidationError)
    faults = [f"{x['loc'][-1]}={x['input']}: {x['msg']}" for x in e.errors()]
    return _Refused(422, "; ".join(faults)).answer()


async def _answer_wrong_request(request: Request, e: Exception) -> JSONResponse:
    assert isinstance(e, HTTPException)
    return _Refused(e.status_code, f"{request.method} {request.url.path}: {e.detail}").answer()


class _Limits:
    """Middleware: who may ask, how much at once, and how many at the same time."""

    def __init__(self, is_local: bool) -> None:
        self.is_local = is_local
        self.requests = 0
        self.lock = asyncio.Lock()

    async def __call__(self, request: Request, call_next: Next) -> Response:
        try:
            self.check(request)
        except _Refused as e:
            return e.answer()
        if request.method != "POST":
            return await call_next(request)
        self.requests += 1
        try:
            async with self.lock:
                return await call_next(request)
        finally:
            self.requests -= 1

    def check(self, request: Request) -> None:
        """Refuse a request of another site, one that is too large, or one too many."""
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        if self.is_local and urlsplit(f"//{host}").hostname not in _LOOPBACK:
            raise _Refused(403, f"this server answers to its own machine only, not as {host}")
        if origin is not None and urlsplit(origin).netloc != host:
            raise _Refused(403, f"pages of {origin} may not use this server")
        if request.method != "POST":
            return
        size = request.headers.get("content-length", "")
        if not size.isdigit():
            raise _Refused(411, "the request has no Content-Length: send the file as a whole")
        if int(size) > MAX_BYTES:
            raise _Refused(
                413,
                f"the file has {int(size) >> 20} MiB: at most {MAX_BYTES >> 20} are accepted, "
                "give a shorter video or use dfer predict",
            )
        if self.requests >= MAX_REQUESTS:
            raise _Refused(503, f"busy with {self.requests} requests: try again in a moment")


def _predict(model: ExportedModel, video: bytes, faces: bool, explain: bool) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "video"
        file.write_bytes(video)
        try:
            _check_duration(file)
            count = MAX_EXPLAINED * explain
            return _answer(predict_video(model, file, faces=faces, explain=count))
        except UserError as e:
            raise UserError(str(e).replace(str(file), "the video")) from e


def _check_duration(file: Path) -> None:
    video = open_frames(file, FPS)
    if isinstance(video, Frames):
        return
    try:
        seconds = video.seconds()
    except DamagedVideo as e:
        raise UserError(f"{e.file} cannot be read as a video: {e.reason}") from e
    if seconds > MAX_SECONDS:
        raise UserError(
            f"{file} lasts {seconds:.0f} s: at most {MAX_SECONDS:.0f} are accepted, cut it or use "
            "dfer predict"
        )


def _answer(prediction: VideoPrediction) -> dict[str, Any]:
    """Return a prediction as JSON: None for a window without a face."""
    return {
        "classes": prediction.classes,
        "seconds": prediction.seconds,
        "overall": prediction.overall.tolist(),
        "spans": prediction.spans.tolist(),
        "probabilities": [
            None if np.isnan(row).any() else row.tolist() for row in prediction.probabilities
        ],
        "faces": None if prediction.faces is None else prediction.faces.tolist(),
        "pictures": [_data_url(picture) for picture in prediction.thumbnails],
        "explained": data_uri(prediction.explained_figure()) if prediction.explained else None,
    }


def _data_url(picture: np.ndarray) -> str:
    """Return a picture, uint8 [H, W, 3], as the URL of a JPEG."""
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
