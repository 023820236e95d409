"""``dfer describe``: words for what faces do, from a vision model or from ready-made captions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dfer_dist.utils.errors import UserError
from launch.console import ProgressBar

if TYPE_CHECKING:
    from dfer_dist.data.captions.generate import Outcome, Wanted
    from dfer_dist.data.captions.imports import Imported
    from dfer_dist.data.captions.store import Source
    from dfer_dist.data.shards.index import Index

_SHOWN = 100  # characters of an example


def describe(
    shards: Annotated[str, typer.Argument(help="A local folder of shards.", metavar="SHARDS")],
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="An OpenAI-compatible URL, such as http://localhost:8000/v1.", metavar="URL"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model's name there; of captions, a name for their source."),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each clip, evenly over it.")] = 8,
    share_frames: Annotated[
        bool,
        typer.Option("--share-frames", help="Let frames leave for the endpoint: faces are people."),
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 4,
    per_minute: Annotated[
        float | None, typer.Option(min=0.01, help="Most requests a minute, tries included.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds for an answer.")] = 120.0,
    tries: Annotated[int, typer.Option(min=1, help="Tries for each clip.")] = 6,
    body: Annotated[
        str, typer.Option(help="More fields of each request, as JSON; null takes one away.")
    ] = "{}",
    split: Annotated[str | None, typer.Option(help="Only this one, such as train.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many clips, to try.")] = None,
    imported: Annotated[
        list[Path] | None,
        typer.Option(
            "--import",
            help="A table of ready-made captions instead; may be repeated.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Have a vision model describe what the face does in each clip, or take ready-made captions, and keep the words beside the shards.

    Nothing is sent without --share-frames. What was answered is never asked again; the same command goes on, and asks again for what failed.
    The credential is read from DFER_ENDPOINT_KEY.

    Example: [bold]dfer describe data/dfew --endpoint http://localhost:8000/v1 --model Qwen/Qwen2.5-VL-7B-Instruct --share-frames[/bold]
    """
    from dfer_dist.data.captions.endpoint import Asking, Endpoint
    from dfer_dist.data.captions.generate import choose_clips, make_body, make_source, open_folder
    from dfer_dist.data.captions.generate import describe as ask

    console = Console(highlight=False)
    index = open_folder(shards)
    if imported:
        if endpoint:
            raise UserError("--endpoint or --import: give one of them")
        _import(console, index, imported, model or "captions")
        return
    if not endpoint or not model:
        raise UserError("give --endpoint URL and --model NAME, or --import FILE")
    fields = make_body(_object(body))
    source = make_source(model, frames, fields)
    server = Endpoint(endpoint, model, fields, Asking(timeout, tries, per_minute))
    clips, cached = choose_clips(index, source, split, limit)
    if clips and not share_frames:
        raise UserError(
            f"{_size(clips)} would go to {server.url}{_before(cached)}; faces are people: --share-frames allows it"
        )
    if clips:
        console.print(
            f"{_size(clips)} go to {server.url}{_before(cached)}", soft_wrap=True, markup=False
        )
    with ProgressBar(console, "describe clips") as advance:
        outcome = ask(index, source, server, concurrency, split, limit, advance)
    _show(console, index, source, outcome)
    if outcome.failed or outcome.unasked:
        console.print("the same command asks again for what has no answer")
        sys.exit(1)


def _object(body: str) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except ValueError as e:
        raise UserError(f"--body {body}: no JSON ({e})") from e
    if not isinstance(fields, dict) or {"model", "messages", "stream"} & fields.keys():
        raise UserError(
            f'--body {body}: a JSON object such as {{"max_tokens": 1000}}, without model, messages and stream'
        )
    return fields


def _size(clips: list[Wanted]) -> str:
    return f"{sum(len(clip.frames) for clip in clips):,} frames of {len(clips):,} clips"


def _before(cached: int) -> str:
    return f" ({cached:,} clips were answered before)" if cached else ""


def _show(console: Console, index: Index, source: Source, outcome: Outcome) -> None:
    table = Table(title=Text(f"{index.name}: {source}"), title_justify="left")
    for name, justify in (("", "left"), ("clips", "right"), ("such as", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_row("answered", f"{outcome.answered:,}", "")
    table.add_row("answered before", f"{outcome.cached:,}", "")
    for reason, count in outcome.failed.most_common():
        table.add_row(f"failed: {reason}", f"{count:,}", _plain(outcome.examples[reason]))
    if outcome.unasked:
        table.add_row("not asked any more", f"{outcome.unasked:,}", "")
    console.print(table)
    _tell_cleaning(console, index, source)


def _plain(words: str) -> Text:
    """The beginning of what a server said, without what a terminal would obey."""
    return Text("".join(c if c.isprintable() else " " for c in " ".join(words.split()))[:_SHOWN])


def _tell_cleaning(console: Console, index: Index, source: Source) -> None:
    """How much of a source's descriptions is left without label words."""
    from dfer_dist.data.captions.label_leakage import clean, label_words
    from dfer_dist.data.captions.store import FILE, read

    file = f"{index.root}/{FILE}"
    texts = list(read(index).of(source).values())
    if not texts:
        return
    named = [text for text in texts if label_words(text, index.classes)]
    emptied = sum(not clean(text, index.classes) for text in texts)
    words = f"{len(named):,} of {len(texts):,} have label words, which are taken out when they are read; {emptied:,} have nothing left"
    console.print(f"{file}: {words}", soft_wrap=True, markup=False)


def _import(console: Console, index: Index, files: list[Path], name: str) -> None:
    from dfer_dist.data.captions.imports import import_captions

    done: list[Imported] = import_captions(index, files, name)
    for one in done:
        console.print(
            f"{one.source}: {one.new:,} captions added, {one.same:,} there before; {one.without:,} clips have none in these files, "
            f"{one.unexpected:,} are of no clip here",
            soft_wrap=True,
            markup=False,
        )
        _tell_cleaning(console, index, one.source)
