"""Check whether training would start on this machine, and find all that it reads."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hardware import extensions_dir, filesystem
from dfer_dist.utils.records import Record
from launch.doctor.checks import NOTE, OK, Check, Result, note, ok, wrong

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
# file systems that machines share over a network
_NETWORK = re.compile(
    "nfs|lustre|beegfs|gpfs|cifs|smb|ceph|gluster|sshfs|afs|pvfs|orangefs|weka|panfs"
)


@dataclass(frozen=True)
class MachineRequest(Record):
    """What a run needs of a machine."""

    tracking: str | None = None  # URI; None: no tracking
    scratch: str | None = None  # folder for shards on the machine's own disk
    gpus: int = 0
    cpus: int | None = None  # of each rank


def check_machine(request: MachineRequest, config: Config | None = None) -> Iterator[Check]:
    """Check this machine, one thing after the other; with settings also what they name."""
    yield _run("python", _python)
    yield _run("GPUs", _gpus, request.gpus, config)
    if request.cpus:
        yield _run("processors", _processors, request.cpus)
    yield _run("DeepSpeed", _extension)
    if request.scratch:
        yield _run("scratch", _scratch, request.scratch)
    if config:
        yield _run("weights", _weights, config)
        yield _run("shards", _shards, config)
    if request.tracking:
        yield _run("tracking", _tracking, request.tracking)


def check_extras() -> Iterator[Check]:
    """Check what only videos need."""
    missing = [name for name in _VIDEO_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield Check("videos", NOTE, f"{', '.join(missing)} missing: pip install 'dfer_dist[faces]'")
    else:
        yield Check("videos", OK, "can be packed, faces can be cropped")
    ffprobe = shutil.which("ffprobe")
    yield Check("ffmpeg", OK if ffprobe else NOTE, ffprobe or "not installed; only tests need it")


def _run(subject: str, check: Callable[..., Result], *arguments: object) -> Check:
    """Make a check; an exception is a result too, as other checks are worth having."""
    try:
        return Check(subject, *check(*arguments))
    except UserError as e:
        return Check(subject, *wrong(_one_line(e)))
    except Exception as e:
        return Check(subject, *wrong(f"{type(e).__name__}: {_one_line(e)}"))


def on_network(kind: str) -> bool:
    """Return whether a kind of file system is one that machines share over a network."""
    return bool(_NETWORK.search(kind))


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
                sees_gpu = sys.modules["torch"].cuda.is_available()
                choose_device(Device.cuda if sees_gpu else Device.cpu)
        except Exception as e:  # a library that does not load raises OSError, RuntimeError, ...
            errors.append(f"{name} ({type(e).__name__}: {_one_line(e)})")
    if errors:
        text = f"cannot import {'; '.join(errors)}: install dfer_dist again into {sys.prefix}"
        return wrong(text)
    import deepspeed
    import torch

    libraries = f"torch {torch.__version__}, DeepSpeed {deepspeed.__version__}"
    return ok(f"{platform.python_version()}, {libraries} ({sys.executable})")


def _gpus(wanted: int, config: Config | None) -> Result:
    import torch

    from dfer_dist.config.schema import Device, Precision
    from dfer_dist.distributed.process_group import describe_gpu_setup, precision_fault

    if wanted and config and config.train.device is Device.cpu:
        return note(f"{wanted} asked for and not used: train.device=cpu")
    seen = torch.cuda.device_count()
    if seen < wanted:
        setup = describe_gpu_setup()
        return wrong(f"{wanted} asked for, torch sees {seen} ({setup}): look at nvidia-smi there")
    if seen:
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        text = f"{seen} x {torch.cuda.get_device_name(0)}, {memory:.0f} GiB each"
        precision = config.train.precision if config else Precision.bf16
        fault = precision_fault(precision, torch.device("cuda", 0))
        if fault:
            return wrong(f"{text}; {fault}")
        return ok(text)
    if "SLURM_JOB_ID" in os.environ:
        return ok("none asked for")
    return ok("none: training uses the processor")


def _processors(wanted: int) -> Result:
    bound = len(os.sched_getaffinity(0))
    if bound < wanted:
        return note(f"a rank may use {bound} of the {wanted} it asks for: give fewer data.workers")
    return ok(f"{bound} for a rank that asks for {wanted}")


def _extension() -> Result:
    import torch

    if torch.cuda.is_available():
        return ok("needs no extension on a GPU")
    if list(extensions_dir().glob("deepspeed_shm_comm/*.so")):
        return ok(f"extension for the processor is built ({extensions_dir()})")
    return wrong(
        f"its extension is not built in {extensions_dir()}: run {sys.executable} "
        "-m dfer_dist.training.engine (needs g++)"
    )


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
        return wrong(f"{folder} cannot be written ({e.strerror}): choose another cluster.scratch")
    free, kind = shutil.disk_usage(folder).free / 1e9, filesystem(folder)
    if is_new:
        # another process may have put something there meanwhile
        with suppress(OSError):
            folder.rmdir()
    if on_network(kind):
        return note(
            f"{folder} is on {kind}, a network file system, {free:.0f} GB free: scratch should be "
            "on the node's own disk"
        )
    return ok(f"{folder} can be written, {free:.0f} GB free ({kind})")


def _weights(config: Config) -> Result:
    from dfer_dist.config.schema import Head
    from dfer_dist.models.backbone import check_hub_files, find_weights

    path = find_weights(config.model.backbone, config.model.pretrained)
    if config.model.head is Head.text:
        check_hub_files(config.model.backbone)
    return ok(str(path) if path else f"none: {config.model.backbone} starts at random")


def _shards(config: Config) -> Result:
    from dfer_dist.data.shards.joint import open_sets, sets_of

    index = open_sets(config.data, config.data.loss_budget)
    clips, size = sum(s.clips for s in index.shards), sum(s.bytes for s in index.shards)
    count, where = f"{clips} clips in {len(index.shards)} shards", config.data.locations
    text = f"{index.name}, {count}, {size / 1e9:.2f} GB at {', '.join(where)}"
    remote = [(own, own.root) for own in sets_of(index) if not isinstance(own.root, Path)]
    if not remote:
        return ok(text)
    cached = sum(shard.bytes for own, _ in remote for shard in own.shards)
    return _cached(remote[0][1], cached, text)


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
        return note(text)
    return ok(f"{text}, kept in {remote.cache.folder}")


def _tracking(uri: str) -> Result:
    if uri.startswith("sqlite:"):
        return _sqlite(Path(uri.removeprefix("sqlite:///")))
    from dfer_dist.tracking.server import client

    try:
        client(uri).search_experiments(max_results=1)
    except Exception as e:
        return wrong(
            f"{uri} cannot be reached ({type(e).__name__}): training would continue without it; "
            "does the server run, and may this machine connect to it?"
        )
    return ok(f"{uri} answers")


def _sqlite(file: Path) -> Result:
    kind = filesystem(file.parent)
    if file.exists():
        import sqlite3

        uri = f"{file.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as store:
            store.execute("select count(*) from experiments")
    if on_network(kind):
        return note(
            f"{file} is sqlite on {kind}, whose locks do not hold between nodes: start an MLflow "
            "server and give tracking.uri=http://…"
        )
    state = "sqlite" if file.exists() else "sqlite, created by the first run"
    return ok(f"{file} ({state} on {kind})")
