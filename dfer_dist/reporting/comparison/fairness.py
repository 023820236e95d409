"""What makes a comparison of two runs less than fair."""

from __future__ import annotations

from dfer_dist.reporting.results import LoadedRun, folds_name, read_settings
from dfer_dist.reporting.wording import folds_text, join, without_class_text


def other_folds(first: LoadedRun, second: LoadedRun) -> bool:
    """Return whether two runs have different folds."""
    return first.result.folds_hash != second.result.folds_hash


def same_clips(first: LoadedRun, second: LoadedRun) -> bool:
    """Return whether two runs were trained and tested on the same clips in every fold."""
    a, b = first.result, second.result
    parts = []
    for loaded in (first, second):
        config = read_settings(loaded.run)
        held_out = None
        if loaded.result.selection == "best_val" and config:
            held_out = config.train.val_fraction, config.train.seed
        lost = [fold.result.lost_clips for fold in loaded.folds.values()]
        result = loaded.result
        parts.append(
            (list(loaded.folds), held_out, result.folds_hash, result.ambiguous_clips, lost)
        )
    return a.index_hash == b.index_hash and parts[0] == parts[1] and not any(parts[0][-1])


def unfair(first: LoadedRun, second: LoadedRun) -> list[str]:
    """Return sentences on what makes the comparison of two runs less than fair."""
    a, b, lines = first.result, second.result, []
    if a.dataset != b.dataset:
        lines.append(f"They are of different data sets ({a.dataset}, {b.dataset}).")
    elif a.index_hash != b.index_hash:
        hashes = f"{a.index_hash[:12]}, {b.index_hash[:12]}"
        lines.append(f"They were trained and tested on different data (index {hashes}).")
    for loaded, other in ((first, b), (second, a)):
        more = loaded.result.ambiguous_clips
        if more and not other.ambiguous_clips:
            lines.append(f"Only {loaded.name} was trained on {more} clips without a majority.")
    for loaded in (first, second):
        lines += endpoint_notes(loaded)
    if a.selection != b.selection and not (a.endpoint or b.endpoint):
        selections = f"{a.selection}, {b.selection}"
        if "best_test" in (a.selection, b.selection):
            selections += "; best_test looks at the test fold and is optimistic"
        lines.append(f"Their epochs were chosen differently ({selections}).")
    configs = (read_settings(loaded.run) for loaded in (first, second))
    seeds = [config.train.seed for config in configs if config]
    if len(set(seeds)) > 1:
        lines.append(f"They were trained with different seeds ({join(seeds)}).")
    for loaded in (first, second):
        missing = loaded.summary.missing
        if missing:
            folds = f"{len(loaded.folds)} of {len(loaded.all_folds)} folds"
            lines.append(f"{loaded.name} has {folds} ({join(missing)} missing).")
    common = [k for k in first.folds if k in second.folds]
    if other_folds(first, second):
        names = [folds_name(x.run, x.result.folds_hash) for x in (first, second)]
        lines.append(
            f"They have different folds ({join(names)}): they were trained on other clips, and "
            "are compared over the test clips of all folds."
        )
    elif not common:
        lines.append("They have no fold in common.")
    elif first.folds.keys() != second.folds.keys():
        lines.append(f"Only {folds_text(common)} of both are compared.")
    return lines


def endpoint_notes(loaded: LoadedRun) -> list[str]:
    """Return what is not known of a model at an endpoint, and its answers that name no class."""
    if not (endpoint := loaded.result.endpoint):
        return []
    unknown = f"is {endpoint.model} at an endpoint: which clips it was trained on is not known."
    texts = [unknown, without_class_text([fold.result for fold in loaded.folds.values()])]
    return [f"{loaded.name} {text}" for text in texts if text]
