"""Run every benchmark and put its figures into docs/background/benchmarks.md, between marks such as
``<!-- step -->`` and ``<!-- end -->``: ``make bench``.

``python benchmarks/write.py step eval`` runs these alone. The prose around the tables is written by
hand and holds no figures of the tables.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dfer_dist.distributed.process_group import device_name

HERE = Path(__file__).parent.parent
DOC = HERE / "docs" / "background" / "benchmarks.md"
DFER = str(Path(sys.executable).with_name("dfer"))

Figures = dict[str, Any]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def machine() -> str:
    cores, memory = (
        len(os.sched_getaffinity(0)),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
    )
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].split("\n")[0].split()
    units = (
        ", ".join(
            name
            for name, flag in (("AMX", "amx_bf16"), ("AVX-512 in bf16", "avx512_bf16"))
            if flag in flags
        )
        or "no bf16 units"
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, text=True, capture_output=True
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{device_name(torch.device('cpu'))}, {cores} cores ({units}), {memory:.0f} GiB, {gpu}; torch {torch.__version__.partition('+')[0]}; "
        f"{date.today()}, commit {commit or 'unknown'}."
    )


def loader(figures: Figures) -> str:
    names = {
        "floor": "libjpeg-turbo alone, frames in memory: the floor",
        "ours": "one loader worker, its consumer counts",
        "in_process": "no worker: in the training process",
        "baseline": "Pillow over frame files, augmented there: `benchmarks/pil_folders.py`",
        "augment_device": f"augmentation on the device ({figures['about']['device']}), apart",
    }
    rows = []
    for name, words in names.items():
        own = [figures[name][key] for key in ("clips_per_s", "clips_per_cpu_s")]
        floor = [figures["floor"][key] for key in ("clips_per_s", "clips_per_cpu_s")]
        cells = [f"{x:.0f} ({100 * x / f:.0f} %)" for x, f in zip(own, floor, strict=True)]
        rows.append([words, *cells, gib(figures[name])])
    need = 300 / figures["ours"]["clips_per_s"]
    return table(["Way", "clips/s", "clips/s of processor time", "memory, GiB"], rows) + (
        f"\n\nA GPU that trains on 300 clips a second needs {need:.2f} such cores."
    )


def steps(figures: Figures) -> str:
    names = {
        "ours": "ours",
        "recomputing": "ours, recomputing activations",
        "fed": "ours, clips from one loader worker",
        "floor": "its matrix products alone: the floor",
        "baseline": "plain PyTorch in float32: `benchmarks/plain_step.py`",
    }
    ours, base, floor = figures["ours"], figures["baseline"], figures["floor"]
    rows = [
        [
            words,
            f"{figures[n]['seconds']:.2f}",
            f"{figures[n]['clips_per_s']:.2f}",
            f"{100 * figures[n]['peak_bytes'] / base['peak_bytes']:.0f} %, {gib(figures[n])}"
            if "peak_bytes" in figures[n]
            else "",
        ]
        for n, words in names.items()
        if figures.get(n)
    ]
    products = (
        f"; {figures['flops'] / 1e12 / floor['seconds']:.2f} TFLOP/s alone"
        if figures.get("recomputing")
        else ""
    )
    said = (
        f"{ours['clips_per_s'] / base['clips_per_s']:.2f} times as fast as plain PyTorch, {100 * ours['clips_per_s'] / floor['clips_per_s']:.0f} % of the floor's clips "
        f"({figures['flops'] / 1e12:.2f} TFLOP{products})."
    )
    if figures.get("fed"):
        said += f" With one loader worker, {100 * figures['fed']['waited'] / figures['fed']['seconds']:.1f} % of the step is waiting for data."
    if figures.get("training"):
        said += f" {ours['clips_per_s'] / figures['training']['ours']['clips_per_s']:.1f} times as many clips a second as in training."
    return (
        table(["Way", "seconds", "clips/s", "memory, of plain PyTorch's, GiB"], rows)
        + "\n\n"
        + said
    )


def save(figures: Figures) -> str:
    names = {
        "ours": "ours, until the checkpoint stands",
        "floor": "its bytes alone",
        "baseline": "`torch.save` of all weights",
    }
    rows = [[words, f"{figures[n]['seconds']:.2f}"] for n, words in names.items()]
    return (
        table(["Way", "seconds"], rows)
        + f"\n\n{figures['ours']['bytes'] / 1e9:.2f} GB; training waits for {figures['ours']['held_seconds']:.2f} s of it."
    )


def startup(figures: Figures) -> str:
    names = {
        "ours": "`dfer train` to its first step",
        "again": "the same command after a stop, to the next step",
        "floor": "the imports alone",
        "baseline": "a plain script to its first step",
    }
    return table(
        ["From", "seconds"], [[words, f"{figures[n]['seconds']:.1f}"] for n, words in names.items()]
    )


def parts(figures: Figures) -> str:
    rows = [
        [
            name,
            own["predicted"],
            f"{1000 * own['before']:.0f}",
            f"{1000 * own['here']:.0f}",
            f"{100 * (1 - own['here'] / own['before']):.0f} %",
        ]
        for name, own in figures.items()
    ]
    return table(["Part", "predicted to save", "before, ms", "here, ms", "saved"], rows)


def as_printed(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"


BENCHES: dict[str, tuple[list[str], Callable[[Figures], str] | None]] = {
    "loader": ([DFER, "bench", "loader"], loader),
    "step": ([DFER, "bench", "step"], steps),
    "step-l14": (
        [
            DFER,
            "bench",
            "step",
            "dfew_vitl14",
            "--clips",
            "1",
            "data.num_frames=8",
            "--rounds",
            "3",
        ],
        steps,
    ),
    "eval": ([DFER, "bench", "eval"], steps),
    "save": ([DFER, "bench", "save"], save),
    "startup": ([DFER, "bench", "startup"], startup),
    "parts": ([sys.executable, str(HERE / "benchmarks" / "parts.py")], parts),
    "scale": (
        [DFER, "plan", "dfew_vitb32", "train.global_batch=4", "--scale", "1,2,4", "--measure"],
        None,
    ),
}


def run(command: list[str]) -> tuple[str, Figures]:
    """What a benchmark prints, and its figures: from ``--json``, or printed themselves."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        words = ["--json", str(file)] if "bench" in command else []
        done = subprocess.run(
            [*command, *words],
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            env=os.environ | {"COLUMNS": "140"},
            check=True,
        )
        if words:
            return done.stdout, json.loads(file.read_text(encoding="utf-8"))
    return done.stdout, json.loads(done.stdout) if done.stdout.startswith("{") else {}


def gib(row: Figures) -> str:
    return f"{row['peak_bytes'] / 2**30:.2f}"


def put(mark: str, text: str) -> None:
    """Replace what stands between a mark and its end."""
    before = DOC.read_text(encoding="utf-8")
    found = re.compile(rf"(<!-- {mark} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    assert found.search(before), f"{DOC} has no mark <!-- {mark} -->"
    DOC.write_text(found.sub(lambda m: f"{m[1]}{text}{m[2]}", before), encoding="utf-8")


def main() -> None:
    for name in sys.argv[1:] or BENCHES:
        command, shape = BENCHES[name]
        shown = " ".join(
            ["dfer", *command[1:]] if command[0] == DFER else ["python", "benchmarks/parts.py"]
        )
        print(shown, flush=True)
        printed, figures = run(command)
        put(name, f"`{shown}`\n\n" + (shape(figures) if shape else as_printed(printed)))
    put("machine", machine())


if __name__ == "__main__":
    main()
