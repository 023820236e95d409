"""What ``dfer doctor`` looks at on a machine, this one or a node: does all start there, and is all there that training reads."""

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
from launch.doctor.checks import NOTE, OK, WRONG, Check, on_network

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
CheckResult = tuple[str, str]  # state and words


@dataclass(frozen=True)
class CheckRequest:
    """What a run would want of a machine."""

    config: str | None = None  # settings of the experiment, a file
    tracking: str | None = None  # URI; None: no tracking
    scratch: str | None = None  # folder for shards on the machine's own disk
    gpus: int = 0
    cpus: int | None = None  # of a rank


def examine(ask: CheckRequest) -> Iterator[Check]:
    """Look at the machine this runs on, one thing after the other."""
    config = read_config(Path(ask.config)) if ask.config else None
    looks: list[tuple[str, Callable[[], CheckResult]]] = [
        ("python", _python),
        ("GPUs", lambda: _gpus(ask.gpus)),
    ]
    if ask.cpus:
        looks.append(("processors", lambda: _processors(ask.cpus or 1)))
    looks.append(("DeepSpeed", _extension))
    if ask.scratch:
        looks.append(("scratch", lambda: _scratch(ask.scratch or "")))
    if config:
        looks += [("weights", lambda: _weights(config)), ("shards", lambda: _shards(config))]
    if ask.tracking:
        looks.append(("tracking", lambda: _tracking(ask.tracking or "")))
    for what, look in looks:
        yield Check(what, *_tried(look))


def examine_extras() -> Iterator[Check]:
    """What only films need."""
    missing = [name for name in _VIDEO_PACKAGES if importlib.util.find_spec(name) is None]
    hint = (
        f"{', '.join(missing)} missing: pip install 'dfer_dist[faces]'"
        if missing
        else "can be packed, faces can be cropped"
    )
    yield Check("films", NOTE if missing else OK, hint)
    ffmpeg = shutil.which("ffprobe")
    yield Check("ffmpeg", OK if ffmpeg else NOTE, ffmpeg or "not there; only tests need it")


def _tried(look: Callable[[], CheckResult]) -> CheckResult:
    try:
        return look()
    except UserError as e:
        return WRONG, " ".join(str(e).split())
    except Exception as e:  # whatever libraries raise, the other lines are worth having
        return WRONG, f"{type(e).__name__}: {' '.join(str(e).split())}"


def _python() -> CheckResult:
    from dfer_dist.config.schema import Device
    from dfer_dist.distributed.process_group import choose_device

    broken = []
    for name in _NEEDED:
        try:
            importlib.import_module(name)
            if name == "torch":
                choose_device(Device.auto)  # else DeepSpeed talks of its own guess
        except Exception as e:  # a library that does not load raises OSError, RuntimeError, …
            broken.append(f"{name} ({type(e).__name__}: {' '.join(str(e).split())})")
    if broken:
        return (
            WRONG,
            f"cannot import {'; '.join(broken)}: install dfer_dist again into {sys.prefix}",
        )
    import deepspeed
    import torch

    return (
        OK,
        f"{platform.python_version()}, torch {torch.__version__}, DeepSpeed {deepspeed.__version__} ({sys.executable})",
    )


def _gpus(asked: int) -> CheckResult:
    import torch

    seen = torch.cuda.device_count()
    if seen < asked:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        given = (
            "Slurm shows none (CUDA_VISIBLE_DEVICES)" if shown is None else f"Slurm shows {shown}"
        )
        return (
            WRONG,
            f"{asked} asked for, torch sees {seen} ({given}, torch is built for CUDA {torch.version.cuda}): look at nvidia-smi there",
        )
    if not seen:
        return (
            OK,
            "none asked for"
            if asked == 0 and "SLURM_JOB_ID" in os.environ
            else "none: training takes the processor",
        )
    return (
        OK,
        f"{seen} x {torch.cuda.get_device_name(0)}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB each",
    )


def _processors(asked: int) -> CheckResult:
    bound = len(os.sched_getaffinity(0))
    if bound < asked:
        return (
            NOTE,
            f"a rank may use {bound} of the {asked} it asks for: fewer data.workers will keep up",
        )
    return OK, f"{bound} for a rank that asks for {asked}"


def _extension() -> CheckResult:
    import torch

    from dfer_dist.training.engine import extensions_dir

    if torch.cuda.is_available():
        return OK, "needs no extension beside a GPU"
    built = list(extensions_dir().glob("deepspeed_shm_comm/*.so"))
    if not built:
        return (
            WRONG,
            f"its extension is not built in {extensions_dir()}: run {sys.executable} -m dfer_dist.training.engine (needs g++)",
        )
    return OK, f"extension for the processor is built ({extensions_dir()})"


def _scratch(place: str) -> CheckResult:
    from dfer_dist.data.shards.cache import expand_variables

    folder = Path(expand_variables(place))
    new = not folder.exists()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as f:
            f.write(bytes(1 << 20))
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        return WRONG, f"{folder} cannot be written ({e.strerror}): choose another cluster.scratch"
    free, kind = shutil.disk_usage(folder).free / 1e9, filesystem(folder)
    if new:
        with suppress(OSError):  # somebody else has put something there
            folder.rmdir()
    if on_network(kind):
        return (
            NOTE,
            f"{folder} is on {kind}, a network file system, {free:.0f} GB free: it is meant for the node's own disk",
        )
    return OK, f"{folder} can be written, {free:.0f} GB free ({kind})"


def _weights(config: Config) -> CheckResult:
    from dfer_dist.models.backbone import find_weights

    path = find_weights(config.model.backbone, config.model.pretrained)
    return OK, str(path) if path else f"none wanted: {config.model.backbone} begins at random"


def _shards(config: Config) -> CheckResult:
    from dfer_dist.data.shards.index import open_index

    index = open_index(config.data, config.data.loss_budget)
    clips, size = sum(s.clips for s in index.shards), sum(s.bytes for s in index.shards)
    words = f"{index.name}, {clips} clips in {len(index.shards)} shards, {size / 1e9:.2f} GB at {index.root}"
    return _cached(index.root, size, words) if not isinstance(index.root, Path) else (OK, words)


def _cached(remote: Remote, size: int, words: str) -> CheckResult:
    """Whether the set fits where it is kept on this machine."""
    place = remote.cache.folder
    while not place.exists():
        place = place.parent
    room = min(shutil.disk_usage(place).free, remote.cache.limit)
    if room < size:
        return (
            NOTE,
            f"{words}; {room / 1e9:.0f} GB in {remote.cache.folder} will not hold it all, shards will be copied again and again",
        )
    return OK, f"{words}, kept in {remote.cache.folder}"


def _tracking(uri: str) -> CheckResult:
    if not uri.startswith("sqlite:"):
        from dfer_dist.tracking.mlflow_runs import client

        try:
            client(uri).search_experiments(max_results=1)
        except Exception as e:
            return (
                WRONG,
                f"{uri} cannot be reached ({type(e).__name__}): training would go on without it; is it served, and open to this machine?",
            )
        return OK, f"{uri} answers"
    file = Path(uri.removeprefix("sqlite:///"))
    kind = filesystem(file.parent)
    if file.exists():
        import sqlite3

        with closing(
            sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        ) as store:
            store.execute("select count(*) from experiments")
    if on_network(kind):
        return (
            NOTE,
            f"{file} is sqlite on {kind}, whose locks do not hold between nodes: serve MLflow and give tracking.uri=http://…",
        )
    return (
        OK,
        f"{file} ({'sqlite' if file.exists() else 'sqlite, made by the first run'} on {kind})",
    )
