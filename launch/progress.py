"""A progress bar for a fold, fed from the fold's own files."""

from __future__ import annotations

import json
from typing import Any

from rich.progress import Progress

from dfer_dist.runs.layout import FoldDir
from dfer_dist.utils.files import read_json


class Follower:
    """Moves a progress bar to what the fold's files say."""

    def __init__(self, fold: FoldDir, progress: Progress, task: Any) -> None:
        self.fold, self.progress, self.task = fold, progress, task
        self.offset = 0
        self.seen: dict[str, float] = {}
        self.known_steps = False

    def __call__(self) -> None:
        if not self.known_steps and self.fold.status.exists():
            status = read_json(self.fold.status)
            if status["state"] == "RUNNING":
                self.known_steps = True
                self.progress.update(self.task, total=status["steps"])
        if not self.known_steps or not self.fold.metrics.exists():
            return
        if self.fold.metrics.stat().st_size < self.offset:
            self.offset = 0  # a resumed fold wrote the file anew
        with self.fold.metrics.open("rb") as f:
            f.seek(self.offset)
            text = f.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        try:
            for line in whole.splitlines():
                self.seen |= json.loads(line)
        except ValueError:
            self.offset = 0  # the same, and it has grown past where we were
            return
        if whole:
            self.progress.update(self.task, completed=self.seen["step"], figures=self._figures())

    def _figures(self) -> str:
        parts = [f"loss {self.seen['loss']:.2f}"] if "loss" in self.seen else []
        parts += [
            f"{name} {self.seen[key]:.1f}"
            for key, name in (("val_war", "val WAR"), ("test_war", "WAR"))
            if key in self.seen
        ]
        parts += (
            [f"{self.seen['clips_per_second']:.0f} clips/s"]
            if "clips_per_second" in self.seen
            else []
        )
        return "  ".join(parts)


def verdict(fold: FoldDir) -> str:
    result = read_json(fold.result)
    return f"UAR {result['uar']:.2f}  WAR {result['war']:.2f}"
