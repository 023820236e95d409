"""Facts about this machine: memory, processor, file systems, processes, and peak speed of GPUs."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil


class _Peak(NamedTuple):
    """Dense TFLOP/s of a GPU: in 16 bits with float32 accumulation, and in float32."""

    half: float
    single: float
    has_bf16: bool = True


# From NVIDIA's data sheets (those with sparsity halved; GeForce from the Ampere and Ada
# whitepapers), by the whole name that the driver gives: variants of a chip (A10G, H20, a MIG
# slice) have other peaks. Float32 is that of the CUDA cores, as torch multiplies by default.
_PEAK_TFLOPS = {
    r"B200": _Peak(2250, 75),
    r"H200": _Peak(989, 67),
    r"H100 80GB HBM3": _Peak(989, 67),
    r"H100 NVL": _Peak(835, 60),
    r"H100 PCIe": _Peak(756, 51),
    r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe": _Peak(312, 19.5),
    r"A30": _Peak(165, 10.3),
    r"A40": _Peak(149.7, 37.4),
    r"A10": _Peak(125, 31.2),
    r"L40S": _Peak(362, 91.6),
    r"L40": _Peak(181, 90.5),
    r"L4": _Peak(121, 30.3),
    r"V100-SXM2-\d+GB": _Peak(125, 15.7, has_bf16=False),
    r"V100-PCIE-\d+GB": _Peak(112, 14, has_bf16=False),
    r"V100S-PCIE-32GB": _Peak(130, 16.4, has_bf16=False),
    r"T4": _Peak(65, 8.1, has_bf16=False),
    r"RTX A6000": _Peak(154.8, 38.7),
    r"RTX 6000 Ada Generation": _Peak(364, 91.1),
    r"GeForce RTX 3090": _Peak(71, 35.6),
    r"GeForce RTX 4090": _Peak(165, 82.6),
}


def extensions_dir() -> Path:
    """Return the folder of DeepSpeed's compiled extension.

    It is inside this environment, so that another version of ninja does not invalidate it. Each
    version of libc has its own: nodes with different systems would compile it again in turns.
    """
    libc: str | None = None
    with suppress(ValueError):
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    own = Path(sys.prefix).resolve() / "torch_extensions" / (libc or "libc").replace(" ", "-")
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or own)


def resident_bytes() -> int:
    """Return the main memory that this process uses now, in bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes(pid: int | None = None) -> int:
    """Return the most main memory that a process has used at once, in bytes.

    Parameters
    ----------
    pid : int, optional
        The process; by default this one.
    """
    # psutil has no peak on Linux, and getrusage includes that of the program before exec.
    fields = _proc_fields(Path("/proc", str(pid or "self"), "status"))
    return 1024 * int(fields["VmHWM"].split()[0])


def reset_peak_resident_bytes(pid: int | None = None) -> None:
    """Let :func:`peak_resident_bytes` begin anew from the memory in use now."""
    Path("/proc", str(pid or "self"), "clear_refs").write_text("5")


def cpu_model() -> str | None:
    """Return the processor's model name, or None where Linux does not say it."""
    return _proc_fields(Path("/proc/cpuinfo")).get("model name")


def cpu_flags() -> frozenset[str]:
    """Return the processor's instruction set extensions, such as ``avx512f``, by Linux's names."""
    fields = _proc_fields(Path("/proc/cpuinfo"))
    return frozenset(f"{fields.get('flags', '')} {fields.get('Features', '')}".split())


def _proc_fields(path: Path) -> dict[str, str]:
    """Return the ``NAME: VALUE`` lines of a file in /proc; of several with one name the first."""
    fields: dict[str, str] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields


def loopback_bytes_sent() -> int:
    """Return the bytes sent over this machine's loopback interface since it was started."""
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_sent)


def has_open(pid: int, path: Path) -> bool:
    """Return whether a process has a file open; False if there is no such process.

    Raises
    ------
    PermissionError
        If the process belongs to another user.
    """
    try:
        opened = psutil.Process(pid).open_files()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied as e:
        raise PermissionError(f"process {pid} is of another user") from e
    return any(Path(file.path) == path.resolve() for file in opened)


def filesystem(path: Path) -> str:
    """Return the type of the file system that holds a path, such as ``ext4`` or ``nfs4``."""
    kind, longest = "unknown", -1
    for partition in psutil.disk_partitions(all=True):
        mount = Path(partition.mountpoint)
        # Of several mounts at one place the last counts.
        if path.resolve().is_relative_to(mount) and len(mount.parts) >= longest:
            kind, longest = partition.fstype, len(mount.parts)
    return kind


def peak_flops(name: str, precision: str) -> float | None:
    """Return the published dense FLOP/s of the GPU that torch calls ``name``.

    None if the GPU is not in the table or computes in another way.

    Parameters
    ----------
    name : str
    precision : str
        ``bf16``, ``fp16`` or ``fp32``.
    """
    model = re.sub("^(NVIDIA|Tesla) ", "", name)
    found = (peak for pattern, peak in _PEAK_TFLOPS.items() if re.fullmatch(pattern, model))
    peak = next(found, None)
    if peak is None or (precision == "bf16" and not peak.has_bf16):
        return None
    if precision == "fp32":
        return 1e12 * peak.single
    return 1e12 * peak.half


def mfu(flops: float, seconds: float, name: str, precision: str) -> float | None:
    """Return the model FLOPs utilization on the GPU ``name``; None if its peak is unknown.

    Parameters
    ----------
    flops : float
        The model's own operations. A multiply-add counts as two; operations that are repeated to
        save memory count once.
    seconds : float
        The time they took.
    name, precision
        As for :func:`peak_flops`.

    References
    ----------
    Chowdhery et al., "PaLM", JMLR 24, 2023, appendix B.
    """
    peak = peak_flops(name, precision)
    return None if peak is None else flops / seconds / peak
