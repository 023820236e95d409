"""A trace of a few training steps by torch's profiler."""

from __future__ import annotations

import logging
from pathlib import Path

from torch.profiler import profile, schedule

logger = logging.getLogger(__name__)

# Steps before those that are traced: the first ones are slow, and the profiler itself slows the
# step in which it starts.
_WAIT, _WARMUP = 2, 1


class StepProfiler:
    """Traces ``train.profile`` steps of a fold once.

    The trace, of all threads and of the GPU, is a gzipped JSON file in the format of Chrome. It has
    the ranges ``ProfilerStep#N``, ``forward``, ``backward`` and ``optimizer step``.

    Parameters
    ----------
    folder : Path
        Where to write the trace. Nothing is traced if an earlier attempt has left one there.
    steps : int
        Steps to trace; 0 traces none.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        self._done = 0  # steps since the profiler was started
        self._step = 0
        self._profile: profile | None = None
        if steps and not list(folder.glob("steps-*.json.gz")):
            plan = schedule(wait=_WAIT, warmup=_WARMUP, active=steps, repeat=1)
            self._profile = profile(schedule=plan, on_trace_ready=self._write)
            self._profile.start()

    def step(self, step: int) -> None:
        """Mark the end of a step; ``step`` counts the steps done."""
        self._step = step
        self._done += 1
        if self._profile:
            self._profile.step()

    def stop(self) -> None:
        """Write what is traced, if training ends before all steps are."""
        if self._profile:
            self._profile.stop()
            self._profile = None

    def _write(self, traced: profile) -> None:
        first = self._step - self._done + _WAIT + _WARMUP + 1
        path = self.folder / f"steps-{first}-{self._step}.json.gz"
        self.folder.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        traced.export_chrome_trace(str(temporary))
        temporary.replace(path)
        self._profile = None
        logger.info(f"steps {first} to {self._step} are traced: open {path} at ui.perfetto.dev")
