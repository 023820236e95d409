"""The folder of a search, ``NAME.sweep``, and Optuna's study in it.

Optuna was read in version 5.0.0. Its journal is a file of one JSON object a line: a trial that was
asked for is in it before it is trained, with what it is trained with. Only this command writes it,
under a lock of the folder.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer_dist.config.applicable import applicable_settings
from dfer_dist.config.load import load_config
from dfer_dist.config.schema import NEUTRAL, Config, Selection, flatten
from dfer_dist.runs.layout import FoldDir, parse_folds
from dfer_dist.runs.sweep import SweepDir, SweepMember
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.records import Record
from launch.locks import fold_lock
from launch.runs import check_name, find_changes, known_folds, load_experiment
from launch.sweeps.space import Space, read_space
from launch.sweeps.variants import JobRequest

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from dfer_dist.data.shards.index import Index

EPOCHS = "train.epochs"
_MIN_COMPLETE = 5  # trials before one is pruned, the default of Optuna's median pruner


@dataclass(frozen=True)
class SearchOptions:
    """How a search chooses values and scores them.

    ``metric`` is ``uar`` or ``war``, ``seed`` that of the sampler, ``val_seed`` that of the
    validation part.
    """

    metric: str
    seed: int
    val_seed: int
    prune: bool


@dataclass(frozen=True)
class SearchInfo(Record):
    """``search.json``: what a search is of, which cannot change.

    ``settings`` are those of the experiment that can change a score, and ``folds`` those whose test
    clips are left out.
    """

    settings: dict[str, Any]
    space: dict[str, Any]
    options: SearchOptions
    folds: list[int]
    index_hash: str

    @property
    def fold_list(self) -> str:
        """The folds as ``--folds`` takes them."""
        return ",".join(map(str, self.folds))

    def flat(self) -> dict[str, object]:
        """Return all values by name."""
        space = {f"space {key}": value for key, value in self.space.items()}
        others = {"folds": self.folds, "index_hash": self.index_hash}
        return {**self.settings, **space, **vars(self.options), **others}


@dataclass
class Search:
    """A search that this command holds.

    ``settings`` are those of each trial, besides its own.
    """

    request: JobRequest
    info: SearchInfo
    folder: SweepDir
    space: Space
    study: Study
    settings: list[str]

    @property
    def options(self) -> SearchOptions:
        """How it chooses values and scores them."""
        return self.info.options

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials by number."""
        return self.study.get_trials(deepcopy=False)

    def begin(self, number: int) -> Trial:
        """Return a trial of an earlier command that is not over, or a new one.

        The sampler has a seed of its own for each trial. Else, each command would begin with the
        same random values again.
        """
        from optuna import Trial, samplers

        seed = zlib.crc32(f"{self.options.seed}/{number}".encode())
        self.study.sampler = samplers.TPESampler(seed=seed)
        if number < len(self.trials):
            trial = Trial(self.study, self.trials[number]._trial_id)
        else:
            trial = self.study.ask()
        # a command may have been killed between two of them; those that are known stay
        for name, values in self.space.distributions().items():
            trial._suggest(name, values)
        return trial

    def member(self, trial: Trial) -> SweepMember:
        """Return the run of a trial."""
        name = f"{self.folder.name}-trial{trial.number}"
        return SweepMember(name, self.chosen(trial.params))

    def chosen(self, params: Mapping[str, Any]) -> list[str]:
        """Return a trial's parameters as settings, without those that cannot matter with them."""
        texts = self.space.settings(params)
        try:
            config = load_config(self.request.experiment, [*self.settings, *texts])
        except UserError:
            # together they are refused, and so will the trial be
            return texts
        known = applicable_settings(config)
        return [text for text in texts if text.partition("=")[0] in known]

    def report(self, trial: Trial, fold: FoldDir) -> bool:
        """Report scores of epochs that are new; return whether there were any."""
        known = self.trials[trial.number].intermediate_values
        scores = epoch_scores(fold, self.options.metric)
        new = {epoch: score for epoch, score in scores.items() if epoch not in known}
        for epoch, score in sorted(new.items()):
            trial.report(score, epoch)
        return bool(new)


def epoch_scores(fold: FoldDir, metric: str) -> dict[int, float]:
    """Return the scores of the epochs of a fold, of which ``metrics.jsonl`` has one."""
    scores: dict[int, float] = {}
    if not fold.metrics.exists():
        return scores
    keys = {f"val_{metric}", f"test_{metric}"}
    for line in fold.metrics.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and any(key in line for key in keys):
            values = json.loads(line)
            for key in keys & values.keys():
                scores.setdefault(values["epoch"], values[key])
    return scores


@contextmanager
def open_search(
    request: JobRequest, space: Path, options: SearchOptions, settings: list[str], ranks: int
) -> Iterator[Search]:
    """Begin a search, or find the one to resume, and hold it for the block.

    Parameters
    ----------
    request : JobRequest
        The experiment, and the folds whose test clips are left out.
    space : Path
        The file of the space.
    options : SearchOptions
    settings : list of str
        Of all trials: those of the request, and of a cluster.
    ranks : int
        Of a trial.

    Raises
    ------
    UserError
        If settings, folds, space and ranks do not fit together, the folder holds something else, or
        another command holds it.
    """
    # before anything is made
    import optuna  # noqa: F401

    check_name(request.label)
    config, index = load_experiment(request.experiment, request.overrides, ranks)
    if len(config.data.locations) > 1:
        raise UserError("data.shards names several sets: dfer tune searches on one")
    values = read_space(space, request.experiment, settings)
    on_machine = flatten(load_config(request.experiment, settings))
    # epochs of trainings of other lengths are not comparable
    options = replace(options, prune=options.prune and EPOCHS not in values.values)
    on_machine = {key: value for key, value in on_machine.items() if key not in NEUTRAL}
    on_machine["data.folds_hash"] = config.data.folds_hash
    folds = parse_folds(request.folds, known_folds(config, index))
    info = SearchInfo(on_machine, values.stored, options, folds, index.hash)
    folder = SweepDir.of(request.runs, request.label)
    own = ["data.folds_hash=null", f"data.folds={folder.root / 'folds.json'}"]
    if options.prune and config.train.selection is Selection.last:
        own.append("eval.each_epoch=true")
    with fold_lock(FoldDir(folder.root)):
        if not _is_resumed(folder, info):
            _begin(folder, info, config, index)
        study = _open_study(folder.root, config.train.epochs, options.prune)
        yield Search(request, info, folder, values, study, [*settings, *own])


def _is_resumed(folder: SweepDir, info: SearchInfo) -> bool:
    """Return whether a search exists; refuse another one, and a sweep."""
    if not folder.search.is_file():
        if folder.file.is_file():
            raise UserError(f"{folder.root} is a sweep of dfer crossval: choose another --name")
        return False
    changed = find_changes(SearchInfo.read(folder.search).flat(), info.flat())
    if changed:
        listed = "; ".join(f"{key} was {old}, now {new}" for key, (old, new) in changed.items())
        raise UserError(
            f"{folder.root} belongs to another search: {listed}. Use the same, or --name OTHER for "
            "another search"
        )
    return True


def _begin(folder: SweepDir, info: SearchInfo, config: Config, index: Index) -> None:
    """Write the validation part and, last, what the search is of."""
    from dfer_dist.data.folds.packed import open_folds
    from dfer_dist.data.folds.validation import make_validation

    overlay = open_folds(config.data, index)
    made = make_validation(index, info.folds, overlay, info.options.val_seed)
    made.write(folder.root / "folds.json")
    info.write(folder.search)


def _open_study(root: Path, epochs: int, prune: bool) -> Study:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = root / "journal.log"
    # what a kill leaves: half a line, which makes the next one unreadable, and Optuna's own lock,
    # which it would wait for half a minute
    if journal.is_file():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if prune:
        pruner = optuna.pruners.MedianPruner(_MIN_COMPLETE, n_warmup_steps=1 + epochs // 4)
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(
            storage=storage,
            study_name="search",
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )
    # whatever reading a line of another form raises; a full disk stays what it is
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise UserError(
            f"{journal} is damaged ({type(e).__name__}: {e}): remove what was added to it, or "
            "begin another search with --name OTHER"
        ) from e
