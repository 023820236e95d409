"""Run every benchmark and write its results into ``docs/background/benchmarks.md``.

They go between marks such as ``<!-- step -->`` and ``<!-- end -->``: ``make bench``.
``python benchmarks/write.py step eval`` runs these alone. The text around the tables is written by
hand and has no numbers of the tables.
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

Results = dict[str, Any]
_UNITS = {"AMX": "amx_bf16", "AVX-512 in bf16": "avx512_bf16"}
_STEP_LABELS = {
    "ours": "ours",
    "recomputing": "ours, recomputing activations",
    "fed": "ours, clips from one loader worker",
    "floor": "its matrix products alone: the upper bound",
    "baseline": "plain PyTorch in float32: `benchmarks/plain_step.py`",
}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def machine() -> str:
    """Return a line about this machine, the version of torch and the commit."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].split("\n")[0].split()
    units = [name for name, flag in _UNITS.items() if flag in flags]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, text=True, capture_output=True
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{device_name(torch.device('cpu'))}, {cores} cores "
        f"({', '.join(units) or 'no bf16 units'}), {memory:.0f} GiB, {gpu}; "
        f"torch {torch.__version__.partition('+')[0]}; {date.today()}, commit {commit or 'unknown'}."
    )


def loader(results: Results) -> str:
    """Return the table of the loader."""
    labels = {
        "floor": "libjpeg-turbo alone, frames in memory: the upper bound",
        "ours": "one loader worker, its consumer counts",
        "in_process": "no worker: in the training process",
        "baseline": "Pillow over frame files, augmented there: `benchmarks/pil_folders.py`",
        "augment_device": f"augmentation on the device ({results['about']['device']}), apart",
    }
    rates = ("clips_per_s", "clips_per_cpu_s")
    rows = []
    for key, label in labels.items():
        pairs = [(results[key][rate], results["floor"][rate]) for rate in rates]
        cells = [f"{x:.0f} ({100 * x / bound:.0f} %)" for x, bound in pairs]
        rows.append([label, *cells, gib(results[key])])
    need = 300 / results["ours"]["clips_per_s"]
    return table(["Variant", "clips/s", "clips/s of processor time", "memory, GiB"], rows) + (
        f"\n\nA GPU that trains on 300 clips a second needs {need:.2f} such cores."
    )


def steps(results: Results) -> str:
    """Return the table of a training step or of a test batch, and what follows from it."""
    rows = []
    for key, label in _STEP_LABELS.items():
        if row := results.get(key):
            memory = ""
            if "peak_bytes" in row:
                share = row["peak_bytes"] / results["baseline"]["peak_bytes"]
                memory = f"{100 * share:.0f} %, {gib(row)}"
            rows.append([label, f"{row['seconds']:.2f}", f"{row['clips_per_s']:.2f}", memory])
    heads = ["Variant", "seconds", "clips/s", "memory, of plain PyTorch's, GiB"]
    return f"{table(heads, rows)}\n\n{_comparison(results)}"


def _comparison(results: Results) -> str:
    rates = {key: results[key]["clips_per_s"] for key in ("ours", "floor", "baseline")}
    operations = results["flops"] / 1e12
    speed = ""
    if results.get("recomputing"):
        speed = f"; {operations / results['floor']['seconds']:.2f} TFLOP/s alone"
    text = (
        f"{rates['ours'] / rates['baseline']:.2f} times as fast as plain PyTorch, "
        f"{100 * rates['ours'] / rates['floor']:.0f} % of the upper bound's clips "
        f"({operations:.2f} TFLOP{speed})."
    )
    if fed := results.get("fed"):
        share = 100 * fed["waited"] / fed["seconds"]
        text += f" With one loader worker, {share:.1f} % of the step is waiting for data."
    if training := results.get("training"):
        ratio = rates["ours"] / training["ours"]["clips_per_s"]
        text += f" {ratio:.1f} times as many clips a second as in training."
    return text


def save(results: Results) -> str:
    """Return the table of a checkpoint."""
    labels = {
        "ours": "ours, until the checkpoint is complete",
        "floor": "its bytes alone",
        "baseline": "`torch.save` of all weights",
    }
    rows = [[label, f"{results[key]['seconds']:.2f}"] for key, label in labels.items()]
    ours = results["ours"]
    return (
        f"{table(['Variant', 'seconds'], rows)}\n\n{ours['bytes'] / 1e9:.2f} GB; "
        f"training waits for {ours['held_seconds']:.2f} s of it."
    )


def startup(results: Results) -> str:
    """Return the table of a start."""
    labels = {
        "ours": "`dfer train` to its first step",
        "again": "the same command after a stop, to the next step",
        "floor": "the imports alone",
        "baseline": "a plain script to its first step",
    }
    rows = [[label, f"{results[key]['seconds']:.1f}"] for key, label in labels.items()]
    return table(["From", "seconds"], rows)


def parts(results: Results) -> str:
    """Return the table of the optimised parts."""
    rows = [
        [
            name,
            part["predicted"],
            f"{1000 * part['before']:.0f}",
            f"{1000 * part['here']:.0f}",
            f"{100 * (1 - part['here'] / part['before']):.0f} %",
        ]
        for name, part in results.items()
    ]
    return table(["Part", "predicted to save", "before, ms", "here, ms", "saved"], rows)


def as_printed(text: str) -> str:
    """Return text as a block of code."""
    return f"```\n{text.rstrip()}\n```"


BENCHES: dict[str, tuple[list[str], Callable[[Results], str] | None]] = {
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


def run(command: list[str]) -> tuple[str, Results]:
    """Return what a benchmark prints, and its results: from ``--json``, or printed themselves."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        options = ["--json", str(file)] if "bench" in command else []
        done = subprocess.run(
            [*command, *options],
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            env=os.environ | {"COLUMNS": "140"},
            check=True,
        )
        if options:
            return done.stdout, json.loads(file.read_text(encoding="utf-8"))
    return done.stdout, json.loads(done.stdout) if done.stdout.startswith("{") else {}


def gib(row: Results) -> str:
    """Return the peak memory of a row in GiB."""
    return f"{row['peak_bytes'] / 2**30:.2f}"


def put(mark: str, text: str) -> None:
    """Replace the text between a mark and its end."""
    before = DOC.read_text(encoding="utf-8")
    found = re.compile(rf"(<!-- {mark} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    assert found.search(before), f"{DOC} has no mark <!-- {mark} -->"
    DOC.write_text(found.sub(lambda m: f"{m[1]}{text}{m[2]}", before), encoding="utf-8")


def main() -> None:
    """Run the benchmarks that are named, or all."""
    for name in sys.argv[1:] or BENCHES:
        command, format_results = BENCHES[name]
        shown = "python benchmarks/parts.py"
        if command[0] == DFER:
            shown = " ".join(["dfer", *command[1:]])
        print(shown, flush=True)
        printed, results = run(command)
        text = format_results(results) if format_results else as_printed(printed)
        put(name, f"`{shown}`\n\n{text}")
    put("machine", machine())


if __name__ == "__main__":
    main()
