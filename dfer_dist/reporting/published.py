"""Figures of papers beside a run's own: ``configs/published.yaml``. They are as published; nothing of them was reproduced here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfer_dist.config.load import PUBLISHED, config_dirs, load_as
from dfer_dist.reporting.tables import Table
from dfer_dist.reporting.wording import PROTOCOLS, interval_text, mean_text, warnings
from dfer_dist.utils.errors import UserError


@dataclass
class Figures:
    """In percent, mean over folds."""

    uar: float = 0.0
    war: float = 0.0


@dataclass
class Method:
    name: str = ""
    paper: str = ""
    venue: str = ""
    id: str = ""  # where to find it, such as a DOI
    input: str = "video"
    figures: dict[str, Figures] = field(default_factory=dict)  # by data set


@dataclass
class Published:
    methods: list[Method] = field(default_factory=list)


def read_published(source: str) -> Published:
    """The figures that ``source`` names: ``published``, or a YAML file of the same form.

    Raises
    ------
    UserError
        If there is no such file, or it holds something else.
    """
    path = Path(source)
    if source == PUBLISHED:
        path = next(file for d in config_dirs() if (file := d / f"{PUBLISHED}.yaml").is_file())
    elif path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise UserError(
            f"--against {source}: give 'published', or a YAML file like configs/published.yaml"
        )
    found = load_as(Published, path, {})
    for method in found.methods:
        for dataset, f in method.figures.items():
            if not (
                method.name
                and method.paper
                and method.venue
                and 0 < f.uar <= 100
                and 0 < f.war <= 100
            ):
                raise UserError(
                    f"{path}: '{method.name}', {dataset}: needs name, paper, venue, and uar and war in percent"
                )
    return found


def published_table(name: str, summary: Mapping[str, Any], published: Published) -> Table:
    """The run ``name`` and every published method with figures of the same data set, best WAR last but the run on top.

    Raises
    ------
    UserError
        If none has.
    """
    dataset = str(summary["dataset"]).lower()
    there = [(m, m.figures[dataset]) for m in published.methods if dataset in m.figures]
    if not there:
        known = sorted({d for m in published.methods for d in m.figures})
        raise UserError(
            f"no figures are published for the data set '{dataset}', only for {', '.join(known)}"
        )
    selection = PROTOCOLS[summary["selection"]].partition(":")[0]
    rows = [
        [
            f"{name} (this run)",
            "video",
            selection,
            *(mean_text(summary, m) for m in ("uar", "war")),
        ]
    ]
    rows.append(["95 % interval", "", "", *(interval_text(summary, m) for m in ("uar", "war"))])
    for method, f in sorted(there, key=lambda pair: pair[1].war):
        rows.append(
            [
                method.name,
                method.input,
                f"published: {method.venue}",
                f"{f.uar:.2f}",
                f"{f.war:.2f}",
            ]
        )
    notes = [
        "Figures of papers are as published, not reproduced here; how each paper chose its epoch, its frames and its weights is its own."
    ]
    notes += [f"{m.name}: {m.paper}, {', '.join(filter(None, [m.venue, m.id]))}." for m, _ in there]
    header = ["Method", "Input", "Selection, or source", "UAR %", "WAR %"]
    title = f"{summary['dataset']}: this run beside published figures"
    return Table("published", title, header, rows, warnings(summary), notes, 3, frozenset([2]))
