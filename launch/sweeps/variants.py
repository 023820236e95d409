"""The runs of a sweep: one for each combination of the values of settings, and for each seed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import NEUTRAL, config_hash
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import SweepDir, SweepMember
from dfer_dist.utils.errors import UserError
from launch.runs import open_run

_SEED = "train.seed"
_MAX_SEED = 2**64
_MAX_RUNS = 1000


@dataclass(frozen=True)
class Variant:
    """A run: its name, all its settings, and those that distinguish it; None if it is alone."""

    name: str
    settings: list[str]
    member: SweepMember | None = None


@dataclass(frozen=True)
class JobRequest:
    """An experiment to train, or several: one for each value of settings, and for each seed."""

    experiment: str
    overrides: list[str]
    name: str | None
    runs: Path
    folds: str | None
    allow_drift: Sequence[str]
    sweep: Sequence[str] = ()  # such as model.backbone=ViT-B-32,ViT-L-14
    seeds: str | None = None  # such as 0-4

    @property
    def label(self) -> str:
        """The name of the run, or of the sweep."""
        return self.name or Path(self.experiment).stem

    @property
    def folder(self) -> SweepDir | None:
        """The folder of the sweep; None for a run of its own."""
        if self.sweep or self.seeds is not None:
            return SweepDir.of(self.runs, self.label)
        return None

    def variants(self, settings: Sequence[str]) -> list[Variant]:
        """Return the runs, as :func:`make_variants`; ``settings`` are those of all of them."""
        return make_variants(self.label, self.experiment, settings, self.sweep, self.seeds)


def make_variants(
    label: str,
    experiment: str,
    settings: Sequence[str],
    sweeps: Sequence[str] = (),
    seeds: str | None = None,
) -> list[Variant]:
    """Return the runs of an experiment: all settings of a seed, then those of the next one.

    Parameters
    ----------
    label : str
        With which the runs' names begin: ``LABEL-VALUE-VALUE-seedN``.
    experiment : str
    settings : sequence of str
        Arguments such as ``train.epochs=3``; values of a sweep replace theirs.
    sweeps : sequence of str
        Such as ``model.backbone=ViT-B-32,ViT-L-14``, each of another setting.
    seeds : str, optional
        Such as ``0-4``.

    Raises
    ------
    UserError
        If they are malformed, give a setting or a value twice, or give two runs that are equal or
        have the same name.
    """
    if not sweeps and seeds is None:
        return [Variant(label, list(settings))]
    chosen: list[int | None] = [None]
    if seeds is not None:
        chosen = [*parse_seeds(seeds)]
        if any(setting.partition("=")[0] == _SEED for setting in settings):
            raise UserError(f"--seeds {seeds} sets {_SEED}: leave the argument {_SEED}=… out")
    values = dict(map(_parse_sweep, sweeps))
    if len(values) < len(sweeps):
        raise UserError("--sweep: a setting is given twice: give all its values in one --sweep")
    count = len(chosen) * prod(map(len, values.values()))
    if count > _MAX_RUNS:
        raise UserError(
            f"--sweep and --seeds ask for {count} runs: at most {_MAX_RUNS} are allowed"
        )
    grid = [
        [f"{key}={value}" for key, value in zip(values, combination, strict=True)]
        for combination in itertools.product(*values.values())
    ]
    variants = [_variant(label, settings, setting, seed) for seed in chosen for setting in grid]
    _check_distinct(experiment, variants, len(grid))
    return variants


def open_variant(request: JobRequest, variant: Variant, ranks: int) -> tuple[RunDir, list[int]]:
    """Create a run, or resume it, and name it in the sweep; return it and its folds.

    Raises
    ------
    UserError
        As :func:`~launch.runs.open_run`.
    """
    run, folds = open_run(
        request.runs,
        variant.name,
        request.experiment,
        variant.settings,
        request.allow_drift,
        request.folds,
        ranks,
    )
    if request.folder and variant.member:
        request.folder.add(run, variant.member)
    return run, folds


def parse_seeds(text: str) -> list[int]:
    """Return the seeds in a text such as ``0-4`` or ``0,3,7-9``, in this order.

    Raises
    ------
    UserError
        If a part is neither a number nor a range, or a seed is given twice or too large.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", part.strip())
        ends = [int(n) for n in match.groups() if n] if match else []
        if not ends or ends != sorted(ends) or ends[-1] >= _MAX_SEED:
            raise UserError(f"--seeds '{text}': give numbers and ranges such as 0-4 or 0,3,7")
        if ends[-1] - ends[0] >= _MAX_RUNS:
            raise UserError(f"--seeds '{text}': at most {_MAX_RUNS} seeds are allowed")
        seeds += range(ends[0], ends[-1] + 1)
    twice = sorted(seed for seed in set(seeds) if seeds.count(seed) > 1)
    if twice:
        raise UserError(f"--seeds '{text}': seed {twice[0]} is given twice: give each seed once")
    return seeds


def _parse_sweep(text: str) -> tuple[str, list[str]]:
    """Return the setting and the values of a ``--sweep``."""
    key, equals, rest = text.partition("=")
    # not the commas inside a list such as [0.9,0.99]
    values = [value.strip() for value in re.split(r",(?![^\[]*\])", rest)]
    if not (key and equals and len(values) > 1 and all(values)):
        raise UserError(
            f"--sweep {text}: give a setting and two values or more, such as "
            "model.backbone=ViT-B-32,ViT-L-14"
        )
    if len(set(values)) < len(values):
        raise UserError(f"--sweep {text}: a value is given twice: give each value once")
    if key == _SEED:
        raise UserError(f"--sweep {text}: give --seeds {rest}, whose runs are repetitions")
    if key in NEUTRAL:
        raise UserError(
            f"--sweep {text}: {key} changes no score on the same data, so that there is nothing to "
            "compare: choose another setting; other data needs a dfer crossval of its own"
        )
    return key, values


def _variant(label: str, settings: Sequence[str], setting: list[str], seed: int | None) -> Variant:
    name = "-".join([label, *(_plain(text.partition("=")[2]) for text in setting)])
    all_settings = [*settings, *setting]
    if seed is not None:
        name += f"-seed{seed}"
        all_settings.append(f"{_SEED}={seed}")
    return Variant(name, all_settings, SweepMember(name, setting, seed))


def _plain(value: str) -> str:
    return re.sub("[^A-Za-z0-9._-]+", "-", value)


def _check_distinct(experiment: str, variants: Sequence[Variant], num_settings: int) -> None:
    """Refuse two runs with one folder, and two settings that are the same written otherwise."""
    names = [variant.name for variant in variants]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"--sweep: two combinations of these values give runs of one name, {twice[0]}: give "
            "one of them a dfer crossval --name of its own"
        )
    known: dict[str, str] = {}
    # of one seed
    for variant in variants[:num_settings]:
        digest = config_hash(load_config(experiment, variant.settings))
        if digest in known:
            raise UserError(
                f"--sweep: {known[digest]} and {variant.name} have equal settings: give each "
                "setting once"
            )
        known[digest] = variant.name
