"""Train on votes and on their majority, and compare both on held-out clips of the demo.

``python benchmarks/votes.py`` writes ``docs/development/votes.md``. Ten annotators vote on each clip
of the demo, as a known model says: of a clip with doubt d they choose its class with the probability
1 - d, and with d one of the classes that :data:`CONFUSED` gives for it. What is trained and tested
is packed, trained and compared with dfer's own commands. ``python benchmarks/votes.py FOLDS`` trains
other folds than 1 and 2 and writes nothing.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from write import DFER, HERE, machine, table

from dfer_dist.data.sources.records import SEVEN
from dfer_dist.demo.dataset import render_demo
from dfer_dist.reporting.comparison.paired import compare, load_runs
from dfer_dist.reporting.votes import compared_votes_table
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import read_json

DOC = HERE / "docs" / "development" / "votes.md"
ANNOTATORS = 10
DOUBT = (0.1, 0.7)  # uniform over clips
# What a clip of each class is taken for, with its probability.
CONFUSED = {
    "happiness": {"surprise": 0.6, "neutral": 0.4},
    "sadness": {"neutral": 0.5, "fear": 0.5},
    "neutral": {"sadness": 0.6, "happiness": 0.4},
    "anger": {"disgust": 0.8, "neutral": 0.2},
    "surprise": {"fear": 0.8, "happiness": 0.2},
    "disgust": {"anger": 0.8, "sadness": 0.2},
    "fear": {"surprise": 0.8, "sadness": 0.2},
}
RUNS = {
    "majority": [],
    "votes": ["train.target=votes"],
    "ambiguous": ["train.target=votes", "data.ambiguous=train"],
}
COMMON = ["train.precision=fp32", "eval.shuffle_frames=false", "tracking.enabled=false"]


def draw_votes(label: int, clip: int) -> np.ndarray:
    """Return the votes for a clip of the demo, int64 [7]."""
    rng = np.random.default_rng([10, clip])
    doubt, shares = rng.uniform(*DOUBT), np.zeros(len(SEVEN))
    shares[label] = 1 - doubt
    for name, part in CONFUSED[SEVEN[label]].items():
        shares[SEVEN.index(name)] += doubt * part
    return rng.multinomial(ANNOTATORS, shares)


def write_list(source: Path, file: Path) -> None:
    """Write a list of the demo's clips with their votes, labelled with the majority."""
    with file.open("w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["path", "label", "fold", *(f"votes_{name}" for name in SEVEN)])
        for clip in read_json(source / "demo.json")["rows"]:
            votes = draw_votes(clip["label"], int(clip["name"]))
            is_ambiguous = np.sum(votes == votes.max()) > 1
            fold = "ambiguous" if is_ambiguous else clip["fold"]
            rows.writerow([clip["name"], SEVEN[votes.argmax()], fold, *votes])


def dfer(*arguments: object) -> None:
    """Run a command of dfer."""
    subprocess.run([DFER, *map(str, arguments)], check=True, cwd=HERE)


def train(folder: Path, folds: str) -> list[RunDir]:
    """Render, pack and train; return the runs."""
    source, shards = render_demo(HERE / "data" / "demo" / "source"), folder / "shards"
    write_list(source, folder / "votes.csv")
    lists = ["--lists", folder / "votes.csv", "--root", source / "frames"]
    dfer("pack", "--dataset", "list", *lists, "--classes", ",".join(SEVEN), "--out", shards)
    for name, settings in RUNS.items():
        how = ["--folds", folds, "--nproc", 1, "--runs", folder, "--name", name]
        dfer("crossval", "demo", *how, f"data.shards={shards}", *COMMON, *settings)
    for name in ("majority", "votes"):
        dfer("eval", "--ambiguous", folder / name / "fold-1" / "checkpoints" / "LATEST")
    return [RunDir(folder / name) for name in RUNS]


def main() -> None:
    """Train on both, with and without ambiguous clips, and print the differences."""
    with tempfile.TemporaryDirectory() as folder:
        runs = load_runs(train(Path(folder), *sys.argv[1:2] or ["1,2"]))
        parts = []
        for first, second in ((runs[0], runs[1]), (runs[0], runs[2]), (runs[1], runs[2])):
            found = compared_votes_table(compare(first, second))
            assert found, "the demo has votes"
            parts.append(f"{found.notes[0]}\n\n{table(found.header, found.rows)}")
    text = f"{machine()}\n\n" + "\n\n".join(parts)
    if not sys.argv[1:]:
        before = DOC.read_text(encoding="utf-8")
        block = re.compile(r"(<!-- votes -->\n).*?(\n<!-- end -->)", re.DOTALL)
        DOC.write_text(block.sub(lambda m: f"{m[1]}{text}{m[2]}", before), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
