"""``dfer eval``, ``dfer crosseval`` and ``dfer report``: scores of checkpoints and of runs."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import METRICS, MULTILABEL_METRICS, Scores
from dfer_dist.runs.sweep import SweepDir, expand
from dfer_dist.utils.errors import UserError
from launch.commands import endpoint as api
from launch.console import number_columns, print_line, print_table, progress_bar
from launch.options import Overrides, RunsFolder
from launch.report import print_tables, report_run, report_sweep

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from dfer_dist.reporting.comparison.published import Published

FEW_CLIPS = 10  # of a class: a percentage would look more exact than it is

Fold = Annotated[
    int | None,
    typer.Option(
        help="Fold to test on. Default: the checkpoint's own, or all of another data set."
    ),
]
Tested = Annotated[
    Path,
    typer.Argument(
        help="A folder such as runs/demo/fold-1/checkpoints/LATEST; with --features also a run's."
    ),
]
PredictionsFile = Annotated[
    Path | None, typer.Option(help="Also write the predictions to this parquet file.")
]
Ambiguous = Annotated[
    bool,
    typer.Option(
        "--ambiguous", help="Test on the clips without a majority instead, against their votes."
    ),
]
ZeroShot = Annotated[
    bool,
    typer.Option(
        "--zero-shot",
        help="Test on data with other classes, by their texts; "
        "CHECKPOINT may also be an experiment that was not trained.",
    ),
]
Features = Annotated[
    bool,
    typer.Option(
        "--features",
        help="Also write the features of clips: next to --out, or of a run into its folder.",
    ),
]
Explain = Annotated[
    bool,
    typer.Option("--explain", help="Add heat maps to that picture, from the checkpoints."),
]
ModelName = Annotated[str | None, typer.Option(help="Name of the model at the endpoint.")]
EndpointRun = Annotated[
    str | None,
    typer.Option(help="Name of the endpoint's run. Default: that of experiment and model."),
]
Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Folders of runs; the first is the baseline."),
]
Against = Annotated[
    str | None,
    typer.Option(
        metavar="published",
        help="Show published results next to them: 'published', or a YAML file.",
    ),
]


def evaluate(
    checkpoint: Tested,
    fold: Fold = None,
    out: PredictionsFile = None,
    ambiguous: Ambiguous = False,
    zero_shot: ZeroShot = False,
    features: Features = False,
    endpoint: api.EndpointUrl = None,
    model: ModelName = None,
    share_frames: api.ShareFrames = False,
    concurrency: api.Concurrency = 4,
    per_minute: api.PerMinute = None,
    timeout: api.Timeout = 120.0,
    tries: api.Tries = 6,
    body: api.Body = "{}",
    runs: RunsFolder = Path("runs"),
    name: EndpointRun = None,
    overrides: Overrides = None,
) -> None:
    """Test a checkpoint, or a vision model.

    Every clip is predicted exactly once. On another data set all its test clips are, and classes
    are matched by name. With --endpoint, CHECKPOINT is an experiment, and the result is a run for
    dfer report; run the same command again to resume.

    Example: [bold]dfer eval runs/demo/fold-1/checkpoints/LATEST[/bold], or, trained on DFEW and
    tested on all of MAFW,
    [bold]dfer eval runs/dfew/fold-1/checkpoints/LATEST --zero-shot data.shards=data/mafw[/bold];
    features for the report of a run: [bold]dfer eval runs/demo --features[/bold]
    """
    if endpoint or model or share_frames:
        if ambiguous or zero_shot or features or out:
            raise UserError("--endpoint: leave --ambiguous, --zero-shot, --features and --out out")
        server = api.open_endpoint(endpoint, model, body, timeout, tries, per_minute)
        run = api.run_of(runs, name, checkpoint, server)
        api.classify_clips(str(checkpoint), fold, overrides, server, concurrency, run, share_frames)
        return
    _evaluate(checkpoint, fold, overrides or [], out, ambiguous, zero_shot, features)


def _evaluate(
    checkpoint: Path,
    fold: int | None,
    settings: list[str],
    out: Path | None,
    ambiguous: bool,
    zero_shot: bool,
    features: bool,
) -> None:
    from dfer_dist.evaluation.evaluate import evaluate_checkpoint

    if ambiguous and (zero_shot or fold is not None):
        raise UserError("--ambiguous tests clips of no fold: leave --fold and --zero-shot out")
    run, store = RunDir(checkpoint.resolve()), None
    if run.run.is_file():
        if not features or out or ambiguous or zero_shot or fold is not None:
            raise UserError(
                f"{checkpoint} is a run: give one of its checkpoints, such as "
                f"{checkpoint}/fold-1/checkpoints/LATEST, or --features alone"
            )
        _store_features(checkpoint, settings)
        return
    if features:
        store = _features_file(out, zero_shot)
    if zero_shot:
        _evaluate_zero_shot(checkpoint, fold, settings, out)
        return
    with progress_bar("test clips") as progress:
        table, scores, votes = evaluate_checkpoint(
            checkpoint, fold, settings, out, progress, ambiguous=ambiguous, features=store
        )
    if votes:
        print_line(
            f"votes for {votes.n} clips: KL(votes || model) {votes.kl:.4f} nats, "
            f"{votes.any_annotator:.2f} % predicted as an annotator chose"
        )
    if not ambiguous:
        _print_scores(scores, table.labels, table.logits)


def _features_file(out: Path | None, zero_shot: bool) -> Path:
    """Return the file of the features of a checkpoint's test."""
    if zero_shot or not out:
        raise UserError(
            "--features of a checkpoint are written next to its predictions: give --out FILE, "
            "and leave --zero-shot out"
        )
    return out.with_suffix(".features.parquet")


def _store_features(run: Path, overrides: list[str]) -> None:
    from dfer_dist.evaluation.crosseval import store_features

    with progress_bar("test clips") as progress:
        store_features(RunDir(run.resolve()), overrides, progress)
    print_line(f"features: {run}/fold-*/features.parquet; dfer report {run} shows them")


def _print_scores(scores: Scores, labels: ArrayLike, outputs: ArrayLike) -> None:
    """Print the scores of a test with their intervals, and a table of its classes.

    ``outputs`` are logits or predicted classes.
    """
    from dfer_dist.evaluation.metrics import bootstrap_ci, metric_values
    from dfer_dist.reporting.wording import interval_text

    values, texts = metric_values(scores), []
    for name, metric in METRICS.items():
        if name in values:
            bounds = bootstrap_ci([(labels, outputs)], len(scores.classes), name)
            interval = interval_text(*bounds, decimals=metric.decimals)
            texts.append(f"{metric.title} {values[name]:.{metric.decimals}f} (95 % {interval})")
    print_line(f"{scores.n} clips: {', '.join(texts)}")
    sets = [f"{t} {values[name]:.2f}" for name, t in MULTILABEL_METRICS.items() if name in values]
    if sets:
        print_line(f"sets of labels: {', '.join(sets)}")
    print_table(classes_table(scores))


def _evaluate_zero_shot(
    what: Path, fold: int | None, overrides: list[str], out: Path | None
) -> None:
    """Test a checkpoint, or the backbone of an experiment, by the texts of the classes."""
    from dfer_dist.evaluation.zero_shot import zero_shot
    from dfer_dist.reporting.wording import p_text, trained_text

    with progress_bar("test clips") as progress:
        result = zero_shot(what, fold, overrides, out, progress)
    chance = result["chance"]
    where = f"fold {result['fold']}" if result["fold"] else "all folds"
    trained = trained_text(result["trained_on"])
    print_line(f"zero-shot on {result['dataset']}, {where}, {result['n']} clips; {trained}")
    if result["context"] == "left out":
        print_line(
            "the learned context belongs to the classes of the training and was left out: "
            "only the sentences were encoded"
        )
    guess = {"uar": "the same predictions in random orders", "war": f"always {chance['class']}"}
    for metric, description in guess.items():
        low, high = result["ci95"][metric]
        print_line(
            f"{metric.upper()} {result[metric]:.2f} (95 % {low:.2f} to {high:.2f}); "
            f"chance {chance[metric]:.2f} ({description}), p {p_text(chance[f'{metric}_p'])}"
        )
    print_table(classes_table(Scores(**{f.name: result[f.name] for f in fields(Scores)})))


def classes_table(scores: Scores) -> Table:
    """Return a row for each class: its recall, and what its other clips were taken for."""
    table = Table("Class", *number_columns("Recall %", "Right"), "Most frequent wrong answer")
    for label, counts in zip(scores.classes, scores.confusion, strict=True):
        wrong = dict(zip(scores.classes, counts, strict=True))
        right, n = wrong.pop(label), scores.support[label]
        percent = f"{scores.recall[label] or 0.0:.2f}" * (n >= FEW_CLIPS)
        cells = [label, percent, f"{right} of {n}" * bool(n) or "no clip"]
        most = max(wrong.values(), default=0)
        if most:
            names = ", ".join(name for name, count in wrong.items() if count == most)
            cells.append(f"{names} ({most})")
        table.add_row(*cells)
    return table


def crosseval(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [KEY=VALUE]...", help="Folders of runs, and settings of the tests."
        ),
    ],
    on: Annotated[
        list[str],
        typer.Option(metavar="SET,SET", help="Packed sets to test on, with commas or repeated."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Output folder. Default: crosseval/ in the first run.")
    ] = None,
) -> None:
    """Test several runs on several data sets.

    Writes a matrix of UAR and WAR as JSON, Markdown, LaTeX and a picture. On the set of its
    training a run is tested fold by fold, on others each fold's model on all test clips. Run the
    same command again to resume.

    Example: [bold]dfer crosseval runs/dfew runs/mafw --on data/dfew,data/mafw[/bold]
    """
    from dfer_dist.evaluation.crosseval import missing_tests, plan_tests, run_tests
    from dfer_dist.reporting.comparison.crosseval import score_tests
    from dfer_dist.reporting.files import write_crosseval

    overrides = [argument for argument in runs if "=" in argument.partition("/")[0]]
    folders = [RunDir(Path(run).resolve()) for run in runs if run not in overrides]
    if not folders:
        raise UserError("no run to test: give folders such as runs/demo")
    folder = out or folders[0].root / "crosseval"
    sets = [name for given in on for name in given.split(",") if name]
    tests = plan_tests(folders, sets, overrides, folder / "predictions")
    count, missing = sum(len(t.tests) for t in tests), len(missing_tests(tests))
    print_line(f"{count} tests of a model on a set, {count - missing} of them done before")
    with progress_bar("test clips") as progress:
        run_tests(tests, progress)
    print_tables([write_crosseval(score_tests(tests), folder)], "crosseval.md")
    print_line(f"scores: {folder / 'crosseval.json'}, with .md, .tex and .png next to it")


def report(
    runs: Runs,
    against: Against = None,
    errors: Annotated[
        int | None,
        typer.Option(min=1, help="Draw this many of the most confident errors (frames of people)."),
    ] = None,
    explain: Explain = False,
    share_frames: Annotated[
        bool,
        typer.Option(
            "--share-frames", help="Put that picture into the page too, which MLflow gets."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a comparison. Default: compared/ in the first run."),
    ] = None,
) -> None:
    """Write the report of a run, or compare runs.

    Prints the tables, and writes Markdown, LaTeX and one HTML page.

    Example: [bold]dfer report runs/demo[/bold]; two runs:
    [bold]dfer report runs/first runs/second[/bold]; with published results and confident errors:
    [bold]dfer report runs/dfew_vitb32 --against published --errors 20[/bold]
    """
    from dfer_dist.reporting.comparison.published import read_published

    for option, given in {"--share-frames": share_frames, "--explain": explain}.items():
        if given and not errors:
            raise UserError(f"{option} is about the picture of --errors: give --errors N too")
    if out and len(runs) == 1:
        raise UserError("--out is for a comparison: give several runs, or leave --out out")
    run_dirs = [run_dir for run in runs for run_dir in expand(run)]
    sweep = SweepDir(runs[0].resolve())
    if len(runs) == 1 and sweep.file.is_file():
        report_sweep(sweep)
        return
    published = read_published(against) if against else None
    # check that all of them are runs before anything is written
    for run in run_dirs:
        run.info()
    for run in run_dirs:
        picture = _draw_errors(run, errors, explain) if errors else None
        shared = picture if share_frames else None
        report_run(run, None, published, shared, all_tables=len(runs) == 1)
    if len(runs) > 1:
        _compare(run_dirs, out or run_dirs[0].root / "compared", published)


def _compare(runs: list[RunDir], folder: Path, published: Published | None) -> None:
    """Write the comparison and print its tables."""
    from dfer_dist.reporting.files import write_comparison

    report = write_comparison(runs, folder, published)
    for sentence in report.verdict.sentences:
        print_line(sentence)
    print_tables(report.sections, "comparison.md")
    page = folder / "comparison.html"
    print_line(f"comparison: {page}, with .md, .tex, .json and lists of clips next to it")


def _draw_errors(run: RunDir, count: int, explain: bool) -> Path:
    from dfer_dist.reporting.plots.errors_sheet import draw_confident_errors

    path, errors, fault = draw_confident_errors(run, count, explain)
    if fault:
        print_line(f"without heat maps: {fault}")
    print_line(f"{len(errors)} errors with frames of people, do not share this file: {path}")
    return path
