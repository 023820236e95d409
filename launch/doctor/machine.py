"""Check whether training would start on this machine, and find all that it reads."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_dist.config.load import read_config
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hardware import filesystem
from launch.doctor.checks import NOTE, OK, WRONG, Check, Result, on_network

if TYPE_CHECKING:
    from dfer_dist.config.schema import Config
    from dfer_dist.data.shards.store import Remote

_NEEDED = (
    "torch",
    "torchvision",
    "deepspeed",
    "open_clip",
    "webdataset",
    "pyarrow",
    "simplejpeg",
    "sklearn",
    "omegaconf",
    "mlflow",
)
_VIDEO_PACKAGES = ("av", "dlib", "face_recognition_models")


@dataclass(frozen=True)
class MachineRequest:
    """What a run needs of a machine."""

    config: str | None = None  # the settings of an experiment, a file
    tracking: str | None = None  # URI; None: no tracking
    scratch: str | None = None  # folder for shards on the machine's own disk
    gpus: int = 0
    cpus: int | None = None  # of each rank


def check_machine(request: MachineRequest) -> Iterator[Check]:
    """Check this machine, one thing after the other."""
    config = read_config(Path(request.config)) if request.config else None
    checks: list[tuple[str, Callable[[], Result]]] = [
        ("python", _python),
        ("GPUs", lambda: _gpus(request.gpus)),
    ]
    if request.cpus:
        checks.append(("processors", lambda: _processors(request.cpus or 1)))
    checks.append(("DeepSpeed", _extension))
    if request.scratch:
        checks.append(("scratch", lambda: _scratch(request.scratch or "")))
    if config:
        checks += [("weights", lambda: _weights(config)), ("shards", lambda: _shards(config))]
    if request.tracking:
        checks.append(("tracking", lambda: _tracking(request.tracking or "")))
    for subject, check in checks:
        yield Check.of(subject, _run(check))


def check_extras() -> Iterator[Check]:
    """Check what only videos need."""
    missing = [name for name in _VIDEO_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        text = f"{', '.join(missing)} missing: pip install 'dfer_dist[faces]'"
        yield Check("videos", NOTE, text)
    else:
        yield Check("videos", OK, "can be packed, faces can be cropped")
    ffprobe = shutil.which("ffprobe")
    yield Check("ffmpeg", OK if ffprobe else NOTE, ffprobe or "not installed; only tests need it")


def _run(check: Callable[[], Result]) -> Result:
    """Return the result of a check; an exception is one too, as other checks are worth having."""
    try:
        return check()
    except UserError as e:
        return Result(WRONG, _one_line(e))
    except Exception as e:
        return Result(WRONG, f"{type(e).__name__}: {_one_line(e)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _python() -> Result:
    from dfer_dist.config.schema import Device
    from dfer_dist.distributed.process_group import choose_device

    errors = []
    for name in _NEEDED:
        try:
            importlib.import_module(name)
            if name == "torch":
                # otherwise DeepSpeed prints a guess of its own
                choose_device(Device.auto)
        except Exception as e:  # a library that does not load raises OSError, RuntimeError, ...
            errors.append(f"{name} ({type(e).__name__}: {_one_line(e)})")
    if errors:
        text = f"cannot import {'; '.join(errors)}: install dfer_dist again into {sys.prefix}"
        return Result(WRONG, text)
    import deepspeed
    import torch

    libraries = f"torch {torch.__version__}, DeepSpeed {deepspeed.__version__}"
    return Result(OK, f"{platform.python_version()}, {libraries} ({sys.executable})")


def _gpus(wanted: int) -> Result:
    import torch

    seen = torch.cuda.device_count()
    if seen < wanted:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = "none (CUDA_VISIBLE_DEVICES)" if visible is None else visible
        text = (
            f"{wanted} asked for, torch sees {seen} (Slurm shows {shown}, torch is built for CUDA "
            f"{torch.version.cuda}): look at nvidia-smi there"
        )
        return Result(WRONG, text)
    if seen:
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Result(OK, f"{seen} x {torch.cuda.get_device_name(0)}, {memory:.0f} GiB each")
    if "SLURM_JOB_ID" in os.environ:
        return Result(OK, "none asked for")
    return Result(OK, "none: training uses the processor")


def _processors(wanted: int) -> Result:
    bound = len(os.sched_getaffinity(0))
    if bound < wanted:
        text = f"a rank may use {bound} of the {wanted} it asks for: give fewer data.workers"
        return Result(NOTE, text)
    return Result(OK, f"{bound} for a rank that asks for {wanted}")


def _extension() -> Result:
    import torch

    from dfer_dist.training.engine import extensions_dir

    if torch.cuda.is_available():
        return Result(OK, "needs no extension on a GPU")
    if list(extensions_dir().glob("deepspeed_shm_comm/*.so")):
        return Result(OK, f"extension for the processor is built ({extensions_dir()})")
    text = (
        f"its extension is not built in {extensions_dir()}: run {sys.executable} "
        "-m dfer_dist.training.engine (needs g++)"
    )
    return Result(WRONG, text)


def _scratch(location: str) -> Result:
    from dfer_dist.data.shards.cache import expand_variables

    folder = Path(expand_variables(location))
    is_new = not folder.exists()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as f:
            f.write(bytes(1 << 20))
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        text = f"{folder} cannot be written ({e.strerror}): choose another cluster.scratch"
        return Result(WRONG, text)
    free, kind = shutil.disk_usage(folder).free / 1e9, filesystem(folder)
    if is_new:
        # another process may have put something there meanwhile
        with suppress(OSError):
            folder.rmdir()
    if on_network(kind):
        text = (
            f"{folder} is on {kind}, a network file system, {free:.0f} GB free: scratch should be "
            "on the node's own disk"
        )
        return Result(NOTE, text)
    return Result(OK, f"{folder} can be written, {free:.0f} GB free ({kind})")


def _weights(config: Config) -> Result:
    from dfer_dist.models.backbone import find_weights

    path = find_weights(config.model.backbone, config.model.pretrained)
    return Result(OK, str(path) if path else f"none: {config.model.backbone} starts at random")


def _shards(config: Config) -> Result:
    from dfer_dist.data.shards.index import open_index

    index = open_index(config.data, config.data.loss_budget)
    clips, size = sum(s.clips for s in index.shards), sum(s.bytes for s in index.shards)
    count = f"{clips} clips in {len(index.shards)} shards"
    text = f"{index.name}, {count}, {size / 1e9:.2f} GB at {index.root}"
    if isinstance(index.root, Path):
        return Result(OK, text)
    return _cached(index.root, size, text)


def _cached(remote: Remote, size: int, text: str) -> Result:
    """Check that the set fits into its cache on this machine."""
    existing = remote.cache.folder
    while not existing.exists():
        existing = existing.parent
    free = min(shutil.disk_usage(existing).free, remote.cache.limit)
    if free < size:
        text += (
            f"; {free / 1e9:.0f} GB in {remote.cache.folder} cannot hold it all, so shards will be "
            "copied again and again"
        )
        return Result(NOTE, text)
    return Result(OK, f"{text}, kept in {remote.cache.folder}")


def _tracking(uri: str) -> Result:
    if uri.startswith("sqlite:"):
        return _sqlite(Path(uri.removeprefix("sqlite:///")))
    from dfer_dist.tracking.mlflow_runs import client

    try:
        client(uri).search_experiments(max_results=1)
    except Exception as e:
        text = (
            f"{uri} cannot be reached ({type(e).__name__}): training would continue without it; "
            "does the server run, and may this machine connect to it?"
        )
        return Result(WRONG, text)
    return Result(OK, f"{uri} answers")


def _sqlite(file: Path) -> Result:
    kind = filesystem(file.parent)
    if file.exists():
        import sqlite3

        uri = f"{file.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as store:
            store.execute("select count(*) from experiments")
    if on_network(kind):
        text = (
            f"{file} is sqlite on {kind}, whose locks do not hold between nodes: start an MLflow "
            "server and give tracking.uri=http://…"
        )
        return Result(NOTE, text)
    state = "sqlite" if file.exists() else "sqlite, created by the first run"
    return Result(OK, f"{file} ({state} on {kind})")
