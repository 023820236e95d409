"""Test the models of several runs on several sets, each as ``dfer eval`` does.

The model of each finished fold of a run is a test on each set. Its predictions are a file: that of
the run itself, where the run has tested the same weights on the same clips with the same settings,
or one whose name ends with a hash of all of these. A file that exists is not made again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from dfer_dist.checkpoints import portable as checkpoint
from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.config.load import read_config
from dfer_dist.config.schema import config_hash
from dfer_dist.data.shards.index import Index, open_index
from dfer_dist.data.shards.sidecars import describe_modalities
from dfer_dist.evaluation.eval_clips import EvalClips, find_eval_clips, was_trained_on
from dfer_dist.evaluation.evaluate import evaluate_checkpoint, open_test_data
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import FoldResult
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json


@dataclass(frozen=True)
class FoldTest:
    """The model of a finished fold, to be tested on a set.

    Attributes
    ----------
    result : FoldResult
        Of the fold, on the set of its training.
    checkpoint : Path
        The folder of the weights that the result is of.
    overrides : list of str
        Settings of the test; ``data.shards`` is the set.
    chosen : EvalClips
    predictions : Path
        Their file, made or not.
    """

    result: FoldResult
    checkpoint: Path
    overrides: list[str]
    chosen: EvalClips
    predictions: Path


@dataclass(frozen=True)
class RunTests:
    """The models of a run, to be tested on a set.

    ``name`` and ``set_name`` are those in tables. ``own`` is whether the set is that of the
    training; each model is tested on its own fold then.
    """

    run: RunDir
    name: str
    index: Index
    set_name: str
    own: bool
    tests: list[FoldTest]

    @property
    def classes(self) -> list[str]:
        """Classes of the models, in label order."""
        return self.tests[0].result.classes

    @property
    def left_out(self) -> dict[str, int]:
        """Number of clips by class that the models lack."""
        # on another set all models are tested on the same clips
        tests = self.tests if self.own else self.tests[:1]
        counts: Counter[str] = sum((Counter(t.chosen.left_out) for t in tests), Counter())
        return dict(counts)

    @property
    def lost(self) -> int:
        """Number of test clips that were lost when the set was packed."""
        return len({clip for test in self.tests for clip in test.chosen.part.left_out})


def plan_tests(
    runs: Sequence[RunDir], sets: Sequence[str], overrides: Sequence[str], out: Path
) -> list[RunTests]:
    """Return the tests of each run on each set, all checked; nothing is computed or written.

    Parameters
    ----------
    runs : sequence of RunDir
    sets : sequence of str
        Folders or URLs of packed sets.
    overrides : sequence of str
        Further settings of all tests, such as ``eval.views=3``.
    out : Path
        The folder of predictions.

    Raises
    ------
    UserError
        If a run has no finished fold, a set is missing, lacks a modality, or has no class of a
        model, or something is given twice.
    """
    if not sets:
        raise UserError("no set to test on: give --on data/a,data/b")
    for given in overrides:
        if given.startswith("data.shards="):
            raise UserError(f"{given}: give the sets with --on")
    names = _distinct([str(run.root) for run in runs], [run.root.name for run in runs], "run")
    tests = [
        _plan_run(run, name, folder, overrides, out)
        for run, name in zip(runs, names, strict=True)
        for folder in sets
    ]
    indexes = [of_run.index for of_run in tests[: len(sets)]]
    set_names = _distinct(sets, [index.name for index in indexes], "set")
    return [replace(t, set_name=set_names[i % len(sets)]) for i, t in enumerate(tests)]


def run_tests(
    tests: Iterable[RunTests], progress: Callable[[int, int], None] | None = None
) -> None:
    """Make the predictions that are missing, in this process.

    Parameters
    ----------
    tests : iterable of RunTests
    progress : function, optional
        Called with (clips done, clips in all) over all tests.
    """
    missing = missing_tests(tests)
    done, total = 0, sum(len(test.chosen.part.test) for test in missing)
    for test in missing:

        def report(clips: int, _: int, before: int = done) -> None:
            if progress:
                progress(before + clips, total)

        evaluate_checkpoint(test.checkpoint, None, test.overrides, test.predictions, report)
        done += len(test.chosen.part.test)


def missing_tests(tests: Iterable[RunTests]) -> list[FoldTest]:
    """Return the tests whose predictions are not made yet."""
    return [t for of_run in tests for t in of_run.tests if not t.predictions.is_file()]


def finished_models(run: RunDir) -> list[tuple[FoldResult, Path]]:
    """Return the result of each finished fold, and the folder of the weights that it is of.

    Raises
    ------
    UserError
        If no fold is finished, or weights are missing.
    """
    files = [run.fold(k).result for k in run.info().folds if run.fold(k).result.is_file()]
    if not files:
        raise UserError(f"{run.root} has no finished fold: train one with dfer crossval")
    found = [(r, run.fold(r.fold).root / r.checkpoint) for r in map(FoldResult.read, files)]
    for result, weights in found:
        if result.endpoint:
            raise UserError(
                f"{run.root} is of a model at an endpoint, which has no weights: leave it out, or "
                "test it on the other set with dfer eval --endpoint"
            )
        if not (weights / checkpoint.COMPLETE).is_file():
            raise UserError(
                f"{weights} is no complete checkpoint: fold {result.fold} of {run.root} has lost "
                "the weights that its result is of, train it again"
            )
    return found


def store_features(
    run: RunDir, overrides: list[str], progress: Callable[[int, int], None] | None = None
) -> None:
    """Test each finished fold again and write the features of its clips to its folder.

    ``progress`` is called with (clips done, clips in all).

    Raises
    ------
    UserError
        As :func:`finished_models`, and if the data is not that of the run.
    """
    models = finished_models(run)
    done, total = 0, sum(result.n for result, _ in models)
    for result, weights in models:
        fold = run.fold(result.fold)
        config = read_config(weights / checkpoint.CONFIG, overrides)
        if _own_predictions(fold, result, open_index(config.data)) != fold.predictions:
            raise UserError(
                f"{config.data.shards} is other data than {run.root} was tested on: give a "
                "checkpoint of it, and --out FILE"
            )

        def report(clips: int, _: int, before: int = done) -> None:
            if progress:
                progress(before + clips, total)

        evaluate_checkpoint(weights, result.fold, overrides, None, report, features=fold.features)
        done += result.n


def mean_interval(
    labels: ArrayLike,
    predictions: Sequence[ArrayLike],
    metric: str,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean over models on the same clips.

    Clips are drawn within a class, and a clip counts for all models: models agree on many clips, so
    that drawing for each model anew would give too narrow an interval. Of n clips of a class, n_j
    are right by j of K models. The numbers in a draw are multinomial with probabilities n_j / n,
    and are drawn directly.

    Parameters
    ----------
    labels : int [N]
    predictions : sequence of K int [N]
    metric : {'uar', 'war'}

    Returns
    -------
    (low, high) : percent

    References
    ----------
    Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3 (percentile interval).
    """
    truth, count = np.asarray(labels), len(predictions)
    right = np.sum([np.asarray(p) == truth for p in predictions], axis=0)
    rng, total = np.random.default_rng(seed), np.zeros(resamples)
    present = np.unique(truth)
    for label in present:
        by_right = np.bincount(right[truth == label], minlength=count + 1)
        n = by_right.sum()
        drawn = rng.multinomial(n, by_right / n, size=resamples)
        weights = {"uar": 1 / len(present), "war": n / len(truth)}
        total += weights[metric] * (drawn @ np.arange(count + 1)) / (count * n)
    low, high = np.percentile(100.0 * total, [2.5, 97.5])
    return float(low), float(high)


def _plan_run(run: RunDir, name: str, folder: str, overrides: Sequence[str], out: Path) -> RunTests:
    """Return the tests of a run on the set in ``folder``, named after its index."""
    settings = [*overrides, f"data.shards={folder}"]
    tests = []
    for result, weights in finished_models(run):
        trained = read_config(weights / checkpoint.CONFIG)
        state = read_json(weights / checkpoint.STATE)
        # without its tensors
        saved = Checkpoint(weights, trained, state, model={}, optimizer={}, frozen={}, ema={})
        config, index = open_test_data(saved, settings)
        chosen = find_eval_clips(saved, config, index)
        modalities = describe_modalities(index, config.model.modalities)
        made_by = [config_hash(config), str(modalities and modalities["hash"])]
        predictions = _own_predictions(run.fold(result.fold), result, index)
        if predictions is None or made_by != [result.config_hash, str(result.modalities_hash)]:
            parts = [(weights / checkpoint.COMPLETE).read_text(), *made_by, index.hash]
            key = hashlib.sha256("\n".join([*parts, str(chosen.fold)]).encode()).hexdigest()[:16]
            stem = f"{run.root.name}-fold-{result.fold}-on-{index.name}-{key}"
            predictions = out / f"{stem}.parquet"
        tests.append(FoldTest(result, weights, settings, chosen, predictions))
    return RunTests(run, name, index, index.name, was_trained_on(saved, index), tests)


def _own_predictions(fold: FoldDir, result: FoldResult, index: Index) -> Path | None:
    """Return the predictions of the run itself on a set, if it was tested on it."""
    first = result.sets[0].index_hash if result.sets else result.index_hash
    if index.hash == first:
        return fold.predictions
    others = {own.index_hash: fold.predictions_of(own.dataset) for own in result.others}
    return others.get(index.hash)


def _distinct(places: Sequence[str], names: Sequence[str], kind: str) -> list[str]:
    """Return the names, or the places where two have the same name."""
    twice = [place for place, count in Counter(places).items() if count > 1]
    if twice:
        raise UserError(f"the {kind} {twice[0]} is given twice")
    if len(set(names)) < len(names):
        names = places
    return list(names)
