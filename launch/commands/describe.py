"""``dfer describe``: descriptions of clips, from a vision model or from captions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from dfer_dist.utils.errors import UserError
from launch.console import console, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from dfer_dist.data.captions.generate import Outcome, PendingClip
    from dfer_dist.data.captions.store import Source
    from dfer_dist.data.shards.index import Index

_MAX_EXAMPLE = 100  # characters
_RESERVED_FIELDS = {"model", "messages", "stream"}  # of a request

EndpointUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="OpenAI-compatible URL, such as http://localhost:8000/v1."),
]
ModelName = Annotated[
    str | None,
    typer.Option(help="Name of the model at the endpoint, or of the source with --import."),
]
ShareFrames = Annotated[
    bool, typer.Option("--share-frames", help="Allow sending frames of faces to the endpoint.")
]
PerMinute = Annotated[
    float | None, typer.Option(min=0.01, help="Maximum requests per minute, retries included.")
]
Body = Annotated[
    str, typer.Option(help="More fields of each request as JSON; null removes a field.")
]
Imports = Annotated[
    list[Path] | None,
    typer.Option("--import", metavar="FILE", help="Import a table of captions (repeatable)."),
]


def describe(
    shards: Annotated[str, typer.Argument(help="Local folder of shards.", metavar="SHARDS")],
    endpoint: EndpointUrl = None,
    model: ModelName = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames per clip, evenly spaced.")] = 8,
    share_frames: ShareFrames = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Clips at the same time.")] = 4,
    per_minute: PerMinute = None,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds for an answer.")] = 120.0,
    tries: Annotated[int, typer.Option(min=1, help="Attempts per clip.")] = 6,
    body: Body = "{}",
    split: Annotated[str | None, typer.Option(help="Only this split, such as train.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Describe at most this many clips, as a trial.")
    ] = None,
    imported: Imports = None,
) -> None:
    """Describe each clip with a vision model, or import captions.

    The descriptions are stored next to the shards. Nothing is sent without --share-frames. Run the
    same command again to resume: only clips without an answer are sent. The credential is read
    from DFER_ENDPOINT_KEY.

    Example: [bold]dfer describe data/dfew --endpoint http://localhost:8000/v1
    --model Qwen/Qwen2.5-VL-7B-Instruct --share-frames[/bold]
    """
    from dfer_dist.data.captions import generate
    from dfer_dist.data.captions.endpoint import Endpoint, RetryPolicy

    index = generate.open_folder(shards)
    if imported:
        _import(index, imported, model, endpoint)
        return
    if not endpoint or not model:
        raise UserError("give --endpoint URL and --model NAME, or --import FILE")
    fields = generate.make_fields(_request_fields(body))
    source = generate.make_source(model, frames, fields)
    server = Endpoint(endpoint, model, fields, RetryPolicy(timeout, tries, per_minute))
    clips, num_cached = generate.choose_clips(index, source, split, limit)
    if clips:
        _announce(server.url, clips, num_cached, share_frames)
    with progress_bar("describe clips") as bar:
        outcome = generate.describe(
            index, source, server, concurrency=concurrency, split=split, limit=limit, progress=bar
        )
    _print_outcome(index, source, outcome)
    if outcome.failed or outcome.not_sent:
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


def _announce(url: str, clips: list[PendingClip], num_cached: int, share_frames: bool) -> None:
    """Print what is sent, or refuse to send it."""
    num_frames = sum(len(clip.frames) for clip in clips)
    amount = f"{num_frames:,} frames of {len(clips):,} clips"
    cached = f" ({num_cached:,} clips were answered before)" if num_cached else ""
    if not share_frames:
        raise UserError(
            f"{amount} would go to {url}{cached}; faces are people: --share-frames allows it"
        )
    print_line(f"{amount} go to {url}{cached}")


def _print_outcome(index: Index, source: Source, outcome: Outcome) -> None:
    columns = ("", Column("clips", justify="right"), "example")
    table = Table(*columns, title=Text(f"{index.name}: {source}"), title_justify="left")
    table.add_row("answered", f"{outcome.answered:,}", "")
    table.add_row("answered before", f"{outcome.cached:,}", "")
    for reason, count in outcome.failed.most_common():
        table.add_row(f"failed: {reason}", f"{count:,}", _printable(outcome.examples[reason]))
    if outcome.not_sent:
        table.add_row("not asked any more", f"{outcome.not_sent:,}", "")
    print_table(table)
    _print_label_words(index, source)


def _printable(text: str) -> Text:
    """Return the beginning of a server's text without control characters."""
    line = " ".join(text.split())
    return Text("".join(c if c.isprintable() else " " for c in line)[:_MAX_EXAMPLE])


def _print_label_words(index: Index, source: Source) -> None:
    """Print how many descriptions name a label, and how many are nothing else."""
    from dfer_dist.data.captions.label_leakage import clean, label_words
    from dfer_dist.data.captions.store import FILE, read

    file = f"{index.root}/{FILE}"
    texts = list(read(index).of(source).values())
    if not texts:
        return
    num_named = sum(bool(label_words(text, index.classes)) for text in texts)
    num_emptied = sum(not clean(text, index.classes) for text in texts)
    print_line(
        f"{file}: {num_named:,} of {len(texts):,} have label words, which are removed when they "
        f"are read; {num_emptied:,} have nothing left",
    )


def _import(index: Index, files: list[Path], model: str | None, endpoint: str | None) -> None:
    """Add captions from files, with ``model`` as the name of their source."""
    from dfer_dist.data.captions.imports import import_captions

    if endpoint:
        raise UserError("--endpoint and --import exclude each other: give one of them")
    for one in import_captions(index, files, model or "captions"):
        print_line(
            f"{one.source}: {one.new:,} captions added, {one.same:,} there before; "
            f"{one.without:,} clips have none in these files, "
            f"{one.unexpected:,} belong to no clip of these shards",
        )
        _print_label_words(index, one.source)
