"""What a person types: ``dfer …``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dfer_dist.distributed.preemption import EXIT_PREEMPTED
from dfer_dist.utils.errors import UserError
from launch.commands.bench import bench
from launch.commands.convert import convert
from launch.commands.describe import describe
from launch.commands.enrich import enrich
from launch.commands.models import export, predict
from launch.commands.pack import pack, pack_listing
from launch.commands.plan import plan
from launch.commands.pretrain import pretrain_demo
from launch.commands.report import report
from launch.commands.track import beginning, register, show_server, sync, tell_server, ui
from launch.commands.verify import verify
from launch.commands.zero_shot import show_zero_shot
from launch.console import Bar
from launch.doctor.doctor import doctor
from launch.slurm.cancel import cancel
from launch.slurm.cluster import LOCAL, load_cluster, with_cluster_flags
from launch.slurm.logs import logs
from launch.slurm.status import status

if TYPE_CHECKING:
    from dfer_dist.reporting.published import Published
    from dfer_dist.reporting.sections import Section
    from dfer_dist.runs.layout import RunDir

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Experiment = Annotated[str, typer.Argument(help="A name in configs/ or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings such as train.epochs=3.", metavar="[KEY=VALUE]..."),
]
Runs = Annotated[Path, typer.Option("--runs", help="The folder of all runs.")]
Name = Annotated[
    str | None, typer.Option("--name", help="The run's name; the experiment's by default.")
]
Nproc = Annotated[
    int,
    typer.Option("--nproc", min=1, help="Ranks on this machine: one a GPU, or a few on the CPU."),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option("--max-minutes", min=0.01, help="Save and leave before so many are over."),
]
Drift = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-drift",
        metavar="KEY",
        help="Go on although this differs from the run that is there; may be repeated.",
    ),
]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train, compare and publish CLIP-based models of dynamic facial expressions."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data.")] = Path("data/demo"),
    runs: Runs = Path("runs"),
    nproc: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks on this machine: two, or one where there is one GPU."),
    ] = None,
    clips: Annotated[int, typer.Option(min=70, help="How many clips to render.")] = 700,
    name: Name = None,
    overrides: Overrides = None,
) -> None:
    """Render a small data set, pack it, train all five folds, print the table. Needs no GPU and no downloads.

    Example: [bold]dfer demo[/bold]
    """
    from dfer_dist.config.load import load_config
    from dfer_dist.config.schema import split_batch
    from dfer_dist.data.sources.datasets import read_dataset
    from dfer_dist.demo.dataset import render_demo
    from launch.local import fast_bf16, gpus_here

    console = Console(highlight=False)
    nproc = nproc or min(2, len(gpus_here()) or 2)
    shards = out / "shards"
    words = [f"data.shards={shards}", *(overrides or [])]
    if not fast_bf16():
        console.print("this processor is slow in bf16: training in float32")
        words.insert(0, "train.precision=fp32")
    split_batch(load_config("demo", words), nproc)  # before minutes of drawing
    _check_demo(shards, clips)
    with Bar(console, "render clips") as advance:
        frames = render_demo(out / "source", clips=clips, progress=advance)
    pack_listing(console, read_dataset("demo", frames / "frames", frames / "lists"), shards, 64)
    run, folds = _open(runs, name, "demo", words, ("code", "versions"), None, nproc)
    _crossval(console, run, folds, nproc, None)


app.command()(pretrain_demo)
app.command()(pack)
app.command()(enrich)
app.command()(doctor)


@app.command()
@with_cluster_flags
def crossval(
    experiment: Experiment,
    overrides: Overrides = None,
    folds: Annotated[str | None, typer.Option(help="Such as 1,3-5; all by default.")] = None,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks on this machine: one a GPU, or a few on the CPU."),
    ] = None,
    name: Name = None,
    runs: Runs = Path("runs"),
    max_minutes: MaxMinutes = None,
    allow_drift: Drift = None,
    cluster: Annotated[
        str, typer.Option(help="A name in configs/cluster/ or a YAML file.")
    ] = LOCAL,
    max_parallel: Annotated[
        int | None, typer.Option(min=1, help="Folds at a time on the cluster; all by default.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="A run for each value, and a comparison."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Add what is neither done nor in the queue.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print batch script and settings, submit nothing.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show a live table until all is done.")
    ] = False,
    flags: dict[str, object] | None = None,
) -> None:
    """Train and test all folds and write their summary: here one after the other, or on a Slurm cluster. The same command again goes on after a stop.

    Example: [bold]dfer crossval dfew_vitb32 --folds 1,3-5 --nproc 8 data.shards=data/dfew[/bold], or, on a cluster,
    [bold]dfer crossval dfew_vitb32 --cluster gpus8 --max-parallel 2 --wait[/bold]
    """
    console, chosen = Console(highlight=False), flags or {}
    if cluster == LOCAL:
        _only_local(
            chosen,
            max_parallel=max_parallel,
            sweep=sweep,
            resume=resume,
            dry_run=dry_run,
            wait=wait,
        )
        ranks, deadline = nproc or 1, _deadline(max_minutes)
        run, numbers = _open(
            runs, name, experiment, overrides or [], allow_drift or (), folds, ranks
        )
        _crossval(console, run, numbers, ranks, deadline)
        return
    if nproc or max_minutes:
        raise UserError(
            "--nproc and --max-minutes are for this machine: a cluster has --nodes, --gpus-per-node and --time-minutes"
        )
    from launch.slurm.batch import ClusterTarget
    from launch.slurm.submit import JobRequest, show, submit

    wish = JobRequest(experiment, overrides or [], name, runs, folds, allow_drift or (), sweep)
    target = ClusterTarget(cluster, load_cluster(cluster, chosen), max_parallel)
    if dry_run:
        show(wish, target, console)
        return
    submitted = submit(wish, target, resume, console)
    if wait:
        from launch.slurm.watch import wait as follow

        sys.exit(follow(submitted, console))


def _only_local(flags: dict[str, object], **more: object) -> None:
    given = [k for k, v in {**flags, **more}.items() if v not in (None, False, [])]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} is for a cluster: give --cluster NAME too")


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Ranks, for a run on this machine.")
    ] = None,
) -> None:
    """Go on with a run as it is: submit again what is missing, or, where it was not submitted, train it here.

    Example: [bold]dfer resume runs/dfew_vitb32[/bold]
    """
    from dfer_dist.runs.layout import RunDir

    console, there = Console(highlight=False), RunDir(run.resolve())
    folds = there.describe()["folds"]
    if there.jobs.exists():
        if nproc:
            raise UserError(
                f"--nproc is for this machine, and {there.root} was submitted to a cluster"
            )
        from launch.slurm.submit import resume as submit_again

        submit_again(there, console)
    else:
        _crossval(console, there, folds, nproc or 1, None)


@app.command()
def train(
    experiment: Experiment,
    fold: Annotated[int, typer.Option(help="The fold to train and test, counted from 1.")],
    overrides: Overrides = None,
    nproc: Nproc = 1,
    name: Name = None,
    runs: Runs = Path("runs"),
    max_minutes: MaxMinutes = None,
    allow_drift: Drift = None,
) -> None:
    """Train and test one fold. The same command again goes on after a stop.

    Example: [bold]dfer train dfew_vitb32 --fold 1 --nproc 8 data.shards=data/dfew[/bold]
    """
    deadline = _deadline(max_minutes)
    run, folds = _open(runs, name, experiment, overrides or [], allow_drift or (), str(fold), nproc)
    failed = _run_folds(Console(highlight=False), run, folds, nproc, deadline)
    if not failed:
        _record(run, "FINISHED")
    _check_failed(failed)


@app.command(name="eval")
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A folder such as runs/demo/fold-1/checkpoints/LATEST.")
    ],
    fold: Annotated[
        int | None, typer.Option(help="Test on this fold; the checkpoint's own by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write predictions (parquet) here.")] = None,
    zero_shot: Annotated[
        bool,
        typer.Option(
            "--zero-shot",
            help="On data with other classes, by their texts; CHECKPOINT may be an untrained experiment.",
        ),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Test a checkpoint on a fold, every clip exactly once.

    Example: [bold]dfer eval runs/demo/fold-1/checkpoints/LATEST[/bold], or, trained on DFEW and tested on all of MAFW,
    [bold]dfer eval runs/dfew/fold-1/checkpoints/LATEST --zero-shot data.shards=data/mafw[/bold]
    """
    from dfer_dist.evaluation.evaluate import evaluate_checkpoint

    console = Console(highlight=False)
    if zero_shot:
        show_zero_shot(console, checkpoint, fold, overrides or [], out)
        return
    with Bar(console, "test clips") as advance:
        scores = evaluate_checkpoint(checkpoint, fold, overrides or [], out, advance)
    console.print(f"{scores.n} clips: UAR {scores.uar:.2f}  WAR {scores.war:.2f}")
    for label, recall in scores.recall.items():
        console.print(
            f"  {label:15s} {'no clip' if recall is None else f'{recall:6.2f}'}  of {scores.support[label]}"
        )


app.command()(report)
app.command()(status)
app.command()(logs)
app.command()(cancel)
app.command()(verify)
app.command()(describe)
app.command()(plan)
app.command()(export)
app.command()(predict)
app.command()(ui)
app.command()(sync)
app.command()(register)
app.add_typer(convert, name="convert")
app.add_typer(bench, name="bench")


@app.command(name="fetch-weights")
def fetch_weights(
    backbone: Annotated[str, typer.Argument(help="An open_clip name, such as ViT-B-32-quickgelu.")],
    tag: Annotated[str, typer.Argument(help="A tag of its weights.")] = "openai",
) -> None:
    """Fetch pretrained weights where there is a network; training itself never downloads.

    Example: [bold]dfer fetch-weights ViT-B-32-quickgelu openai[/bold]
    """
    from dfer_dist.models.backbone import fetch_weights as fetch

    print(fetch(backbone, tag))


def main() -> None:
    """Run a command."""
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a command of ``app``. A mistake that a person can mend becomes one line and status 2; with ``--debug`` a traceback."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv = [sys.argv[0], *(word for word in sys.argv[1:] if word != "--debug")]
        os.environ["DFER_DEBUG"] = "1"  # ranks show theirs too
    try:
        sys.exit(app(standalone_mode=False))
    except Exception as e:
        words = _user_message(e)
        if debug or words is None:
            raise
        if words:
            print(f"error: {' '.join(words.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _user_message(e: Exception) -> str | None:
    """What to say of a mistake that a person can mend; None for a fault of this program."""
    if isinstance(
        e, (UserError, OSError)
    ):  # OSError: a full disk, a folder that may not be written
        return str(e)
    if hasattr(
        e, "format_message"
    ):  # the command line's own errors, whichever copy of click Typer brings
        return (
            f"{e.format_message()} (--help tells more)" if e.format_message() else ""
        )  # without a command: it showed its help
    return None


def _open(
    runs: Path,
    name: str | None,
    experiment: str,
    overrides: list[str],
    allow: Sequence[str],
    folds: str | None,
    nproc: int,
) -> tuple[RunDir, list[int]]:
    from launch.runs import open_run

    return open_run(runs, name, experiment, overrides, allow, folds, nproc)


def _deadline(max_minutes: float | None) -> float | None:
    return None if max_minutes is None else time.time() + 60 * max_minutes


def _crossval(
    console: Console, run: RunDir, folds: list[int], nproc: int, deadline: float | None
) -> None:
    failed = _run_folds(console, run, folds, nproc, deadline)
    if any(run.fold(k).result.exists() for k in folds):
        report_run(console, run, "FAILED" if failed else "FINISHED")
    elif failed:
        tell_server(run, "FAILED")
    _check_failed(failed)


def _check_failed(folds: list[int]) -> None:
    if folds:
        print(
            f"fold {', '.join(map(str, folds))} failed; the same command goes on once the cause is mended",
            file=sys.stderr,
        )
        sys.exit(1)


def _run_folds(
    console: Console, run: RunDir, folds: list[int], nproc: int, deadline: float | None
) -> list[int]:
    from launch.local import run_folds
    from launch.processes import Interrupted

    try:
        with beginning(run):
            return run_folds(run, folds, nproc, console, deadline)
    except Interrupted as e:
        console.print(f"{e} in {run.root}; the same command goes on", soft_wrap=True)
        sys.exit(EXIT_PREEMPTED)


def _record(
    run: RunDir, status: str | None, published: Published | None = None, frames: Path | None = None
) -> tuple[dict[str, Any], list[Section]]:
    """Write the report of the folds that are done, to the folder and to MLflow; ``status`` closes the parent run there."""
    from dfer_dist.reporting.files import write_report

    summary, sections = write_report(run, published, frames)
    tell_server(run, status)
    return summary, sections


def report_run(
    console: Console,
    run: RunDir,
    status: str | None = None,
    published: Published | None = None,
    frames: Path | None = None,
    whole: bool = False,
) -> None:
    """Write the report of a run and print its table of scores, or the ``whole`` of it; ``status`` closes its parent run at MLflow."""
    from dfer_dist.reporting.sections import summary_table
    from dfer_dist.reporting.tables import terminal

    summary, sections = _record(run, status, published, frames)
    console.print(summary_table(summary))
    for section in sections if whole else ():
        for table in section.tables if section.key != "scores" else ():
            console.print(terminal(table))
    console.print(f"report: {run.report}, {run.latex.name}, {run.page.name}", soft_wrap=True)
    show_server(console, run)


def _check_demo(shards: Path, clips: int) -> None:
    """A demo of another size stays as it is: its frames are not drawn over."""
    from dfer_dist.data.shards.index import read_index

    have = (
        sum(s.clips for s in read_index(shards).shards)
        if (shards / "index.json").is_file()
        else clips
    )
    if have != clips:
        raise UserError(
            f"{shards} holds a demo of {have} clips: give --clips {have}, or another folder with --out"
        )
