"""``dfer describe``: descriptions of clips, from a vision model or from captions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfer_dist.utils.errors import UserError
from launch.commands import endpoint as api
from launch.console import console, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from dfer_dist.data.captions.generate import Outcome
    from dfer_dist.data.captions.store import Source
    from dfer_dist.data.shards.index import Index

ModelName = Annotated[
    str | None,
    typer.Option(help="Name of the model at the endpoint, or of the source with --import."),
]
Imports = Annotated[
    list[Path] | None,
    typer.Option("--import", metavar="FILE", help="Import a table of captions (repeatable)."),
]


def describe(
    shards: Annotated[str, typer.Argument(help="Local folder of shards.", metavar="SHARDS")],
    endpoint: api.EndpointUrl = None,
    model: ModelName = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames per clip, evenly spaced.")] = 8,
    share_frames: api.ShareFrames = False,
    concurrency: api.Concurrency = 4,
    per_minute: api.PerMinute = None,
    timeout: api.Timeout = 120.0,
    tries: api.Tries = 6,
    body: api.Body = "{}",
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

    index = generate.open_folder(shards)
    if imported:
        _import(index, imported, model, endpoint)
        return
    if not endpoint or not model:
        raise UserError("give --endpoint URL and --model NAME, or --import FILE")
    server = api.open_endpoint(endpoint, model, body, timeout, tries, per_minute)
    source = generate.make_source(server.model, frames, server.fields)
    clips, num_cached = generate.choose_clips(index, source, split, limit)
    if clips:
        api.announce(server.url, clips, num_cached, share_frames)
    with api.resumable(), progress_bar("describe clips") as bar:
        outcome = generate.describe(
            index, source, server, concurrency=concurrency, split=split, limit=limit, progress=bar
        )
    _print_outcome(index, source, outcome)
    if outcome.failed or outcome.not_sent:
        console.print("run the same command to ask again for clips without an answer")
        sys.exit(1)


def _print_outcome(index: Index, source: Source, outcome: Outcome) -> None:
    print_table(api.outcome_table(f"{index.name}: {source}", outcome))
    _print_label_words(index, source)


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
