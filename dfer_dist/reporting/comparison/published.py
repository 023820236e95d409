"""Scores from papers next to a run's own.

``configs/published.yaml`` lists them. They are as published; none of them was reproduced here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from dfer_dist.config.load import PUBLISHED, config_dir, make_as, read_yaml
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.reporting.tables import Section, Table
from dfer_dist.reporting.wording import UNKNOWN, interval_text, join, mean_text, warnings
from dfer_dist.utils.errors import UserError

_SOURCE = re.compile(r"arXiv \d{4}\.\d{4,5}|doi:10\.\d{4,9}/\S+")


class Input(Enum):
    """What a method reads of a clip."""

    video = "video"
    text = "text"
    audio = "audio"


class PaperSelection(Enum):
    """How the tested epoch was chosen, as in the code of a method."""

    test_fold = "test_fold"
    last = "last"
    unknown = "unknown"


# Of a run's selection. No method is known to have held clips out.
_SELECTIONS = {"best_test": PaperSelection.test_fold, "last": PaperSelection.last}
_WHY = {
    PaperSelection.test_fold: "selected on test fold",
    PaperSelection.last: "last epoch",
    PaperSelection.unknown: "unknown selection",
}
_NOTES = (
    "Comparable: yes where folds, inputs and the choice of the epoch are those of this run; else "
    "the reason that weighs most.",
    "Scores of papers are as published, not reproduced here; report.html and summary.md have their "
    "sources.",
)


@dataclass
class PublishedScores:
    """Scores of a method on one data set, in percent, mean over folds; None if not published."""

    uar: float | None = None
    war: float | None = None

    @property
    def texts(self) -> list[str]:
        """Both as text."""
        return [UNKNOWN if x is None else f"{x:.2f}" for x in (self.uar, self.war)]


@dataclass
class Method:
    """A published method and its scores by data set.

    ``source`` is where to read of it, an arXiv number or a DOI; ``secondary`` says that its scores
    were seen in notes or in the table of another paper only. ``trained_parameters`` are in
    millions, None where no source is known.
    """

    name: str = ""
    paper: str = ""
    venue: str = ""
    source: str = ""
    secondary: bool = False
    input: list[Input] = field(default_factory=list)
    language_model: bool = False
    selection: PaperSelection = PaperSelection.unknown
    trained_parameters: float | None = None
    note: str = ""
    scores: dict[str, PublishedScores] = field(default_factory=dict)

    @property
    def citation(self) -> str:
        """Its paper, and what a reader of its scores must know."""
        seen = "scores as another text gives them" * self.secondary
        known = filter(None, [self.paper, self.venue, self.source, seen, self.note])
        return f"{self.name}: {join(known)}."


@dataclass
class Published:
    """The methods of a file such as ``configs/published.yaml``; folds by data set."""

    folds: dict[str, int] = field(default_factory=dict)
    methods: list[Method] = field(default_factory=list)

    def on(self, dataset: str) -> list[Method]:
        """Return the methods with scores on a data set, by WAR."""
        name = dataset.lower()
        found = [m for m in self.methods if name in m.scores]
        return sorted(found, key=lambda m: m.scores[name].war or 0)

    def why_not(self, method: Method, loaded: LoadedRun) -> str:
        """Return why a run cannot be compared with a method; empty if it can.

        Comparable are the same data set and folds, the same inputs and the same choice of the
        epoch.
        """
        result, own = loaded.result, _inputs(loaded)
        folds = self.folds.get(result.dataset.lower())
        if result.folds_hash is not None or len(loaded.folds) != folds:
            return "other folds"
        # of several reasons the one that weighs most
        reasons = {
            "language model": method.language_model,
            "audio": Input.audio in method.input,
            "text": Input.text in method.input and Input.text not in own,
            "no text": Input.text not in method.input and Input.text in own,
            _WHY[method.selection]: method.selection is not _SELECTIONS.get(result.selection),
        }
        return next((text for text, holds in reasons.items() if holds), "")


def read_published(source: str) -> Published:
    """Read the file that ``source`` names: ``published``, or a YAML file of the same form.

    Raises
    ------
    UserError
        If there is no such file, or a method in it is incomplete.
    """
    path = Path(source)
    if source == PUBLISHED:
        path = config_dir() / f"{PUBLISHED}.yaml"
    elif path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise UserError(
            f"--against {source}: give 'published', or a YAML file like configs/published.yaml"
        )
    values = read_yaml(path)
    items = values.pop("methods", None)
    if not isinstance(items, ListConfig) or not items:
        raise UserError(f"{path}: needs methods, a list as in configs/published.yaml")
    published = make_as(Published, values, str(path))
    for i, item in enumerate(items, 1):
        if not isinstance(item, DictConfig):
            raise UserError(f"{path}: method {i} must be a group of settings, such as name: A")
        place = f"{path}: '{item.get('name') or f'method {i}'}'"
        method = make_as(Method, item, place)
        fault = _fault(method, published)
        if fault:
            raise UserError(f"{place}: {fault}")
        published.methods.append(method)
    return published


def _fault(method: Method, published: Published) -> str:
    """Return what is wrong with a method of a file, given those before it, or an empty text."""
    if method.name in [m.name for m in published.methods]:
        return "is there twice: give each method a name of its own"
    # OmegaConf takes a list in the list for one of its items
    inputs = method.input and all(isinstance(x, Input) for x in method.input)
    if not (method.name and method.venue and inputs and method.scores):
        return "needs name, venue, input (a list of video, text, audio) and scores"
    if method.source and not _SOURCE.fullmatch(method.source):
        return f"source '{method.source}' must be like 'arXiv 2308.13382' or 'doi:10.1109/5.771073'"
    if method.trained_parameters is not None and method.trained_parameters <= 0:
        return f"trained_parameters {method.trained_parameters:g} must be millions above 0"
    for dataset, scores in method.scores.items():
        if published.folds.get(dataset, 0) < 1:
            return f"give the number of folds of '{dataset}', as in 'folds: {{{dataset}: 5}}'"
        values = [x for x in (scores.uar, scores.war) if x is not None]
        # a share of 1 is no percentage
        if not values or not all(1 < x <= 100 for x in values):
            return f"{dataset}: needs uar, war or both, in percent"
    return ""


def published_sections(runs: Sequence[LoadedRun], published: Published) -> list[Section]:
    """Return a table of the scores for each run, and their sources, for which no caption has space.

    Raises
    ------
    UserError
        As :func:`published_table`.
    """
    tables = [published_table(loaded, published) for loaded in runs]
    sources = dict.fromkeys(m.citation for run in runs for m in published.on(run.summary.dataset))
    return [
        Section("published", "Published scores", tables),
        Section("sources", "Sources of published scores", text=list(sources)),
    ]


def published_table(loaded: LoadedRun, published: Published) -> Table:
    """Return the run on top of all methods with scores on its data set, by WAR.

    Raises
    ------
    UserError
        If no method has scores on the data set.
    """
    summary, name, dataset = loaded.summary, loaded.name, loaded.summary.dataset.lower()
    methods = published.on(dataset)
    if not methods:
        known = sorted({d for m in published.methods for d in m.scores})
        raise UserError(
            f"no scores are published for the data set '{dataset}', only for {join(known)}"
        )
    spreads = (summary.uar, summary.war)
    inputs = join(x.name for x in _inputs(loaded))
    rows = [
        [f"{name} (this run)", "", *map(mean_text, spreads), inputs, summary.selection, ""],
        ["95 % interval", "", *(interval_text(*s.ci95) for s in spreads), "", "", ""],
    ]
    for method in methods:
        comparable, parameters = published.why_not(method, loaded) or "yes", UNKNOWN
        if method.trained_parameters is not None:
            parameters = f"{method.trained_parameters:g}"
        about = [join(x.name for x in method.input), method.selection.name, parameters]
        rows.append([method.name, comparable, *method.scores[dataset].texts, *about])
    header = ["Method", "Comparable", "UAR %", "WAR %", "Input", "Selection", "Trained, million"]
    title = f"{name} on {summary.dataset}, and published scores"
    return Table("published", title, header, rows, warnings(summary), _NOTES, left=2, rules=[2])


def _inputs(loaded: LoadedRun) -> list[Input]:
    """Return what a run reads of a clip in its training or test."""
    if loaded.result.objective == "labels":
        return [Input.video]
    return [Input.video, Input.text]
