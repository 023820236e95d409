"""Train and test one fold: ``python -m dfer_dist.train --run DIR --fold K``, one process a rank.

The exit status is 0 when the fold is done, 75 when it was preempted and its state is saved, 2 for
an error that the user can fix, and 1 for any other error.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import NoReturn

from dfer_dist.distributed.preemption import PreemptionHandler
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.log import setup_logging


def main() -> NoReturn:
    """Run one rank and exit with its status."""
    # Before torch is imported, which takes seconds: a signal meanwhile must not kill the job.
    preemption = PreemptionHandler().install()
    args = _parse_arguments()
    preemption.set_deadline(args.deadline)
    setup_logging(int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0))

    # Collecting garbage during these imports would take a sixth of their time. `train_fold`, which
    # imports the rest, enables it again.
    gc.disable()
    # open_clip would import it for text towers that few backbones have, which takes a second.
    sys.modules["transformers"] = None  # type: ignore[assignment]
    from dfer_dist.distributed.process_group import exit_process
    from dfer_dist.training.fold import run_fold

    exit_process(run_fold(RunDir(args.run.resolve()), args.fold, preemption))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--fold", type=int, required=True, help="the fold, counted from 1")
    parser.add_argument(
        "--deadline", type=float, help="Unix time before which to save the state and exit"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
