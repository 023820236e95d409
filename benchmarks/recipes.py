"""Write into ``docs/guides/recipes.md`` which GPU memory each experiment needs.

``python benchmarks/recipes.py``; it takes a minute and needs neither GPU, data nor weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from write import HERE, table

from dfer_dist.config.load import load_config
from dfer_dist.planning.estimate import Machine, PlannedStep, data_size, plan

DOC = HERE / "docs" / "guides" / "recipes.md"
GIB = 2**30
GPUS = (1, 8)


def cells(steps: Sequence[PlannedStep], stage: int) -> list[str]:
    """Return GiB of a GPU with the smallest micro batch, and with a rank's whole share."""
    by_micro = {step.micro: step.memory.total / GIB for step in steps if step.stage == stage}
    return [f"{by_micro[min(by_micro)]:.0f}", f"{by_micro[max(by_micro)]:.0f}"]


def rows() -> Iterator[list[str]]:
    """Yield the row of each experiment on real data."""
    for file in sorted((HERE / "configs").glob("*_*.yaml")):
        if file.stem.startswith("demo"):
            continue
        config = load_config(file.stem)
        machines = [Machine("cuda", n, math.inf, 1e14, 1e11, 1e-5) for n in GPUS]
        planned = [plan(config, machine, data_size(config).classes) for machine in machines]
        costs, stage = planned[0][0].costs, config.train.zero_stage
        counts = [f"{n / 1e6:.0f}" for n in (costs.trained, costs.trained + costs.frozen)]
        memory = [cell for steps in planned for cell in cells(steps, stage)]
        print(file.stem, counts, memory, flush=True)
        yield [f"`{file.stem}`", *counts, str(stage), *memory]


def main() -> None:
    """Replace the table between its marks."""
    heads = ["Experiment", "trained, M", "of, M", "ZeRO"]
    for count in GPUS:
        gpus = f"{count} GPU{'s' * (count > 1)}"
        heads += [f"{gpus}, smallest micro batch", f"{gpus}, whole batch"]
    text = table(heads, rows())
    before = DOC.read_text(encoding="utf-8")
    block = re.compile(r"(<!-- memory -->\n).*?(\n<!-- end -->)", re.DOTALL)
    assert block.search(before), f"{DOC} has no mark <!-- memory -->"
    DOC.write_text(block.sub(lambda m: f"{m[1]}{text}{m[2]}", before), encoding="utf-8")


if __name__ == "__main__":
    main()
