"""A comparison of settings over seeds and folds as sections of a report, sentences and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dfer_dist.reporting.comparison.seeds import (
    SCORES,
    Block,
    SeedComparison,
    Setting,
    compare_seeds,
    seeds_block,
)
from dfer_dist.reporting.comparison.verdict import (
    MIN_CLIPS,
    MIN_FOLDS,
    Outcome,
    Verdict,
    outcome,
)
from dfer_dist.reporting.tables import Section, Table
from dfer_dist.reporting.wording import (
    folds_text,
    interval_text,
    p_equals,
    p_text,
    protocol_text,
    signed,
)

_NO_SEEDS = "a single seed"
_NOTES = (
    "Each difference is of the same seed and fold, on the same clips. Intervals and p: t with "
    "Satterthwaite's degrees of freedom, seeds and folds as crossed random effects, training sets "
    "of folds overlapping; they speak of other seeds, test clips and training clips.",
    "p-values are not corrected for the number of comparisons.",
)
_SOURCES = {
    "clips": "Choice of test clips",
    "fold": "Fold otherwise",
    "seed": "Seed, all folds alike",
    "training": "Seed, each fold alone",
}


@dataclass(frozen=True)
class SeedAnalysis:
    """Settings with their scores, and each compared with the first."""

    settings: Sequence[Setting]
    blocks: Sequence[Block | None]
    comparisons: Sequence[SeedComparison]

    @property
    def dataset(self) -> str:
        """The data set of the first setting."""
        return self.settings[0].first.result.dataset


def analyse(settings: Sequence[Setting]) -> SeedAnalysis:
    """Return what the scores of settings with several seeds say."""
    first, *others = settings
    blocks = [seeds_block(setting) for setting in settings]
    return SeedAnalysis(settings, blocks, [compare_seeds(first, other) for other in others])


def seed_sections(analysis: SeedAnalysis) -> list[Section]:
    """Return the table of settings with their differences, and what varies."""
    varies = "Where the variance of the score of one training, tested on one fold, comes from."
    return [
        Section("settings", "Settings over seeds and folds", [_settings_table(analysis)]),
        Section("varies", "What varies", [_variance_table(analysis)], [varies]),
    ]


def _settings_table(analysis: SeedAnalysis) -> Table:
    """Return a row for each setting and score: its mean, and its difference to the first one."""
    interval = "95 % interval"
    header = ["Setting", "Score", "Mean %", interval, "Difference", interval, "p", "Seeds × folds"]
    rows: list[list[str]] = []
    alerts: list[str] = []
    rules: list[int] = []
    for i, (setting, block) in enumerate(zip(analysis.settings, analysis.blocks, strict=True)):
        compared = analysis.comparisons[i - 1] if i else None
        rules += [len(rows)] * bool(i)
        for metric in SCORES:
            cells = [*_mean_cells(setting, block, metric), *_difference_cells(compared, metric)]
            rows.append([setting.name, metric.upper(), *cells, _size(setting, block)])
        alerts += [f"{setting.name}: {text}" for text in (block.warnings if block else [])]
        if compared:
            own = compared.block.warnings if compared.block else []
            title = f"{setting.name} against {compared.first.name}"
            alerts += [f"{title}: {text}" for text in (*compared.warnings, *own)]
    first = analysis.settings[0]
    caption = f"Means over seeds and folds on {analysis.dataset}, differences to {first.name}."
    notes = [f"Protocol {protocol_text(first.first.summary)}.", *_NOTES]
    title = f"Settings on {analysis.dataset}, differences to {first.name}"
    distinct = list(dict.fromkeys(alerts))
    return Table(
        "settings", title, header, rows, distinct, notes, left=2, rules=rules, caption=caption
    )


def _size(setting: Setting, block: Block | None) -> str:
    if block is None:
        return f"1 × {len(setting.first.folds)}"
    return f"{len(block.seeds)} × {len(block.folds)}"


def _mean_cells(setting: Setting, block: Block | None, metric: str) -> list[str]:
    if block is None:
        return [f"{getattr(setting.first.summary, metric).mean:.2f}", _NO_SEEDS]
    x = block.mean[metric].interval
    return [f"{x.value:.2f}", interval_text(x.low, x.high)]


def _difference_cells(compared: SeedComparison | None, metric: str) -> list[str]:
    if compared is None:
        return ["", "", ""]
    if compared.block is None:
        return ["not compared", "", ""]
    mean = compared.block.mean[metric]
    x = mean.interval
    return [signed(x.value), f"{signed(x.low)} to {signed(x.high)}", p_text(mean.p)]


def _variance_table(analysis: SeedAnalysis) -> Table:
    rows = []
    named = [
        (setting.name, block)
        for setting, block in zip(analysis.settings, analysis.blocks, strict=True)
    ]
    named += [(f"{c.second.name} minus {c.first.name}", c.block) for c in analysis.comparisons]
    for name, block in named:
        for metric in SCORES:
            if block is not None:
                rows.append([f"{metric.upper()} of {name}", *_variance_cells(block, metric)])
    notes = [
        "Standard deviation in percent points and share of the variance: two-way random effects by "
        "the method of moments (Searle, Casella & McCulloch, 1992); clips from the predictions, "
        "drawn within fold and class. A negative estimate is shown as 0.",
    ]
    caption = f"What varies in the scores on {analysis.dataset}."
    header = ["Score", *_SOURCES.values(), "All"]
    return Table("varies", "What varies in one score", header, rows, (), notes, caption=caption)


def _variance_cells(block: Block, metric: str) -> list[str]:
    found = block.components(metric)
    cells = []
    for source in _SOURCES:
        variance = getattr(found, source)
        text = "one fold"
        if variance is not None:
            share = 100 * variance / found.total if found.total else 0.0
            text = f"{math.sqrt(variance):.2f} ({share:.0f} %)"
        cells.append(text)
    return [*cells, f"{math.sqrt(found.total):.2f}"]


def seeds_verdict(analysis: SeedAnalysis) -> Verdict:
    """Return a sentence on each setting against the first, or on the only one, and what varies."""
    sentences = [_comparison_text(c) for c in analysis.comparisons]
    first, block = analysis.settings[0], analysis.blocks[0]
    if block:
        if not sentences:
            means = [(m.upper(), *_mean_cells(first, block, m)) for m in SCORES]
            scores = " and ".join(f"{name} {mean} % (95 % {ends})" for name, mean, ends in means)
            sentences.append(f"{scores}: mean over {_over(block)}.")
        sentences.append(_source_text(first, block))
    return Verdict(sentences, [])


def _over(block: Block) -> str:
    folds = f"{len(block.folds)} fold{'s' * (len(block.folds) > 1)}"
    return f"{len(block.seeds)} seeds and {folds}, {block.clips} clips"


def _comparison_text(c: SeedComparison) -> str:
    title = f"{c.second.name} minus {c.first.name}"
    if c.block is None:
        return f"{title}: not compared. {' '.join(c.warnings)}"
    texts, limits = [], _limits(c, c.block)
    higher, lower = "is better", "is worse"
    if limits:
        higher, lower = "scored higher", "scored lower"
    for metric in SCORES:
        mean = c.block.mean[metric]
        x = mean.interval
        said = {
            Outcome.higher: f"{c.second.name} {higher}",
            Outcome.lower: f"{c.second.name} {lower}",
            Outcome.not_shown: "no difference shown",
            Outcome.undecided: "not decided",
        }[outcome(x, mean.p)]
        interval = f"95 % {signed(x.low)} to {signed(x.high)}, {p_equals(mean.p)}"
        texts.append(f"{metric.upper()} {signed(x.value)} points ({interval}): {said}")
    suffix = f" Limits: {' '.join(limits)}" * bool(limits)
    return f"{title}: {'; '.join(texts)}; {_over(c.block)}.{suffix}"


def _limits(c: SeedComparison, block: Block) -> list[str]:
    """Return sentences on everything that weakens the comparison."""
    limits = [*c.warnings, *block.warnings]
    if len(block.folds) < MIN_FOLDS:
        limits.append(f"Only {folds_text(block.folds)} tested: little is known of other clips.")
    if block.clips < MIN_CLIPS:
        limits.append(f"{block.clips} clips are few.")
    return limits


def _source_text(setting: Setting, block: Block) -> str:
    """Return where most of the variance of UAR comes from."""
    found = block.components("uar")
    parts = {source: getattr(found, source) or 0.0 for source in _SOURCES}
    if not found.total:
        return f"The scores of {setting.name} do not vary."
    most = max(parts, key=parts.__getitem__)
    seeds = parts["seed"] + parts["training"]
    return (
        f"UAR of one training of {setting.name} on one fold varies by {math.sqrt(found.total):.2f} "
        f"points (standard deviation), most of it by the {_SOURCES[most].lower()} "
        f"({100 * parts[most] / found.total:.0f} % of the variance); another seed alone changes "
        f"{math.sqrt(seeds):.2f} points."
    )


def analysis_json(analysis: SeedAnalysis) -> dict[str, Any]:
    """Return ``comparison.json`` of settings with several seeds."""
    settings = [
        {
            "name": setting.name,
            "runs": {str(seed): run.run.root.name for seed, run in setting.runs.items()},
            "scores": _block_json(block),
        }
        for setting, block in zip(analysis.settings, analysis.blocks, strict=True)
    ]
    comparisons = [
        {
            "first": c.first.name,
            "second": c.second.name,
            "verdict": _comparison_text(c),
            "warnings": c.warnings,
            "paired": _block_json(c.block),
        }
        for c in analysis.comparisons
    ]
    return {"settings": settings, "comparisons": comparisons}


def _block_json(block: Block | None) -> dict[str, Any] | None:
    if block is None:
        return None
    metrics = {
        metric: {
            "by_seed_and_fold": block.scores[metric].tolist(),
            **asdict(block.mean[metric].interval),
            "p": block.mean[metric].p,
            "variances": asdict(block.components(metric)),
        }
        for metric in SCORES
    }
    return {"seeds": block.seeds, "folds": block.folds, "clips": block.clips, **metrics}
