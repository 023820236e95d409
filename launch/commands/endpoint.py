"""Options of commands that send frames to an endpoint, and ``dfer eval --endpoint``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from launch.console import console, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from dfer_dist.data.captions.endpoint import Endpoint
    from dfer_dist.data.captions.generate import Outcome, PendingClip

_RESERVED_FIELDS = {"model", "messages", "stream"}  # of a request

EndpointUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="OpenAI-compatible URL, such as http://localhost:8000/v1."),
]
ShareFrames = Annotated[
    bool, typer.Option("--share-frames", help="Allow sending frames of faces to the endpoint.")
]
Concurrency = Annotated[int, typer.Option(min=1, help="Clips at the same time.")]
PerMinute = Annotated[
    float | None, typer.Option(min=0.01, help="Maximum requests per minute, retries included.")
]
Timeout = Annotated[float, typer.Option(min=0.01, help="Seconds for an answer.")]
Tries = Annotated[int, typer.Option(min=1, help="Attempts per clip.")]
Body = Annotated[
    str, typer.Option(help="More fields of each request as JSON; null removes a field.")
]


def open_endpoint(
    url: str | None,
    model: str | None,
    body: str,
    timeout: float,
    tries: int,
    per_minute: float | None,
) -> Endpoint:
    """Return the model that the options name."""
    from dfer_dist.data.captions.endpoint import Endpoint, RetryPolicy
    from dfer_dist.data.captions.generate import make_fields

    if not url or not model:
        raise UserError("give both --endpoint URL and --model NAME")
    fields = make_fields(_request_fields(body))
    return Endpoint(url, model, fields, RetryPolicy(timeout, tries, per_minute))


def run_of(runs: Path, name: str | None, experiment: Path, endpoint: Endpoint) -> RunDir:
    """Return the run of a model; its default name is that of experiment and model."""
    from launch.runs import check_name

    if name is None:
        name = f"{experiment.stem}-{re.sub('[^A-Za-z0-9._-]+', '-', endpoint.model)}"
    check_name(name)
    return RunDir((runs / name).resolve())


def classify_clips(
    experiment: str,
    fold: int | None,
    overrides: list[str] | None,
    endpoint: Endpoint,
    concurrency: int,
    run: RunDir,
    share_frames: bool,
) -> None:
    """Test a model on a fold, or on all, and write the report of its run.

    Parameters
    ----------
    experiment : str
        Names the data and the frames of a clip.
    fold, overrides, endpoint, run
        As of :func:`~dfer_dist.evaluation.endpoint.classify.plan_test`.
    concurrency : int
        Clips at a time.
    share_frames : bool
        Whether frames may be sent.
    """
    from dfer_dist.evaluation.endpoint.classify import classify, plan_test, stored_answers
    from dfer_dist.runs.provenance import collect
    from launch.report import report_run
    from launch.runs import command_line

    plan = plan_test(experiment, overrides or [], fold, endpoint, run)
    clips, num_cached = plan.pending(stored_answers(run))
    if clips:
        announce(endpoint.url, clips, num_cached, share_frames)
    plan.create(collect(command_line()))
    with resumable(), progress_bar("classify clips") as bar:
        outcome = classify(plan, endpoint, concurrency, bar)
    print_table(outcome_table(f"{plan.index.name}: {endpoint.model}", outcome))
    answers = stored_answers(run).values()
    print_line(
        f"{len(answers):,} answers are stored, of {sum(a.tries for a in answers):,} requests, "
        f"{sum(a.prompt_tokens for a in answers):,} prompt tokens and "
        f"{sum(a.completion_tokens for a in answers):,} completion tokens"
    )
    report_run(run)
    if outcome.failed:
        console.print("run the same command to ask again for clips without an answer")
        sys.exit(1)


def _request_fields(body: str) -> dict[str, Any]:
    """Return the fields in ``--body``."""
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise UserError(f"--body {body}: not JSON ({error})") from error
    if not isinstance(fields, dict) or _RESERVED_FIELDS & fields.keys():
        raise UserError(
            f'--body {body}: give a JSON object such as {{"max_tokens": 1000}}, '
            "without model, messages and stream"
        )
    return fields


def announce(url: str, clips: Sequence[PendingClip], num_cached: int, share_frames: bool) -> None:
    """Print what is sent, or refuse to send it."""
    num_frames = sum(len(clip.frames) for clip in clips)
    amount = f"{num_frames:,} frames of {len(clips):,} clips"
    cached = f" ({num_cached:,} clips were answered before)" if num_cached else ""
    if not share_frames:
        raise UserError(
            f"{amount} would go to {url}{cached}; faces are people: --share-frames allows it"
        )
    print_line(f"{amount} go to {url}{cached}")


@contextmanager
def resumable() -> Iterator[None]:
    """Say after Ctrl-C how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        print_line("stopped, answers are stored; run the same command to resume")
        raise


def outcome_table(title: str, outcome: Outcome) -> Table:
    """Return the numbers of clips with an answer and without one, by reason."""
    from dfer_dist.data.captions.endpoint import printable_line

    columns = ("", Column("clips", justify="right"), "example")
    rows = [["answered", f"{outcome.answered:,}"], ["answered before", f"{outcome.cached:,}"]]
    for reason, count in outcome.failed.most_common():
        rows.append([f"failed: {reason}", f"{count:,}", printable_line(outcome.examples[reason])])
    if outcome.not_sent:
        rows.append(["not asked any more", f"{outcome.not_sent:,}"])
    table = Table(*columns[: max(map(len, rows))], title=Text(title), title_justify="left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
