"""Typed records of the JSON files in a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Self

from dfer_dist.runs.calibration import CalibrationScores
from dfer_dist.runs.endpoint import NO_CLASS, EndpointTest
from dfer_dist.utils.records import Record, stored_as


class Metric(NamedTuple):
    """What a metric of a table of predictions is called, and whether it is in percent."""

    title: str
    is_percent: bool = True

    @property
    def header(self) -> str:
        """The title with the unit, for the head of a column."""
        return self.title + " %" * self.is_percent

    @property
    def decimals(self) -> int:
        """The decimals that are shown: two in percent, one more for a number up to 1."""
        return 3 - self.is_percent


#: The metrics of a table of predictions. All have intervals; a table may lack ``top2``.
METRICS = {
    "uar": Metric("UAR"),
    "war": Metric("WAR"),
    "macro_f1": Metric("Macro F1"),
    "weighted_f1": Metric("Weighted F1"),
    "top2": Metric("Top-2 accuracy"),
    "kappa": Metric("Cohen's kappa", is_percent=False),
}

#: Further metrics of sets with compound classes or several labels; none has an interval.
MULTILABEL_METRICS = {
    "mean_ap": "mAP of the classes",
    "auc": "AUC of the classes",
    "multilabel_exact_match": "Exact match",
    "multilabel_mean_ap": "mAP",
    "multilabel_auc": "AUC",
    "multilabel_macro_f1": "Macro F1",
    "multilabel_weighted_f1": "Weighted F1",
}


@dataclass(frozen=True)
class MultiLabelScores:
    """Metrics of predicted sets of labels, in percent.

    ``exact_match`` is the share of clips whose labels are all right. mAP and AUC rank clips by the
    probability of a label, and F1 counts each label of a clip; all are means over labels.
    """

    exact_match: float
    mean_ap: float
    auc: float | None
    macro_f1: float
    weighted_f1: float


@dataclass(frozen=True)
class Scores:
    """Metrics of one table of predictions.

    ``uar``, ``war``, ``recall``, F1 and ``top2`` are in percent. Rows of ``confusion`` are the
    truth, columns the prediction, both in the order of ``classes``. A class in ``absent`` has no
    clip in the truth; its recall is None. ``macro_f1`` is the mean F1 of the other classes,
    ``weighted_f1`` their mean weighted by clips. ``top2`` is the share of clips whose label has one
    of the two highest logits; None for predicted classes without logits, and for fewer than three
    classes. ``kappa`` is Cohen's, in -1..1. Older versions recorded neither F1, ``top2`` nor
    ``kappa``. ``mean_ap`` and ``auc``, each class against the rest, are of sets with compound
    classes, and ``multilabel`` of these and of models with sigmoid outputs.
    """

    n: int
    uar: float
    war: float
    recall: dict[str, float | None]
    support: dict[str, int]
    confusion: list[list[int]]
    classes: list[str]
    absent: list[str]
    macro_f1: float | None = None
    weighted_f1: float | None = None
    top2: float | None = None
    kappa: float | None = None
    mean_ap: float | None = None
    auc: float | None = None
    multilabel: MultiLabelScores | None = None


@dataclass(frozen=True)
class UarWar:
    """UAR and WAR in percent."""

    uar: float
    war: float


@dataclass(frozen=True)
class TrainedSet:
    """One of several sets that a fold was trained on.

    ``clips`` are its training clips, of which an epoch takes ``weight`` times as many.
    ``without_class`` counts the clips of all splits, by class, that were left out since the model
    has no such class.
    """

    name: str
    index_hash: str
    clips: int
    weight: float
    without_class: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return it as a line of the log."""
        text = f"{self.name}: {self.clips} training clips with weight {self.weight:g}"
        lost = ", ".join(f"{count} of {name}" for name, count in self.without_class.items())
        if not lost:
            return text
        return f"{text}; left out, without a class of the model: {lost}"


@dataclass(frozen=True)
class SetScores:
    """The metrics of a fold on the test clips of another set than the first one.

    ``left_out`` are the test clips that were lost when it was packed.
    """

    dataset: str
    index_hash: str
    scores: Scores
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class VoteScores:
    """Predictions against the votes of annotators, over the ``n`` clips that have some.

    ``kl`` is the mean KL(votes || model) in nats. ``any_annotator`` is the share of clips in
    percent whose predicted class at least one annotator chose.
    """

    n: int
    kl: float
    any_annotator: float


@dataclass(frozen=True)
class FoldResult(Record):
    """``fold-K/result.json``: the metrics of a finished fold and what they were measured with.

    ``left_out`` are the test clips that were lost when the data was packed; ``parameters`` are all
    of the model, trained or not. ``ema`` is the decay of the moving average of the weights that was
    tested, 0 if the weights themselves were. ``output`` is ``model.output``. Of a training on
    several sets the metrics are those of the first one, ``others`` has those of the others, and
    ``sets`` what was trained on. ``votes`` is None where no test clip has votes,
    ``ambiguous_clips`` are the clips without a majority that were trained on. ``temperature``
    divides logits; it was fitted on validation clips and is None without these. ``calibration`` is
    of the logits as they are, None unless they have a softmax. ``endpoint`` is None but for a model
    at an endpoint, whose ``output`` is ``class``, as it has no probabilities, and whose ``classes``
    end with :data:`NO_CLASS`. Fields that an older run did not record are None, 0 or empty.
    """

    remedy: ClassVar[str] = "evaluate this fold again"

    dataset: str
    fold: int
    n: int
    uar: float
    war: float
    support: dict[str, int]
    confusion: list[list[int]]
    classes: list[str]
    absent: list[str]
    selection: str
    epoch: int
    config_hash: str
    index_hash: str
    macro_f1: float | None = None
    weighted_f1: float | None = None
    top2: float | None = None
    kappa: float | None = None
    mean_ap: float | None = None
    auc: float | None = None
    multilabel: MultiLabelScores | None = None
    output: str = "softmax"
    recall: dict[str, float | None] = field(default_factory=dict)
    step: int | None = None
    checkpoint: str = ""
    shuffled: UarWar | None = None
    modalities: list[str] = field(default_factory=list, metadata=stored_as("levels"))
    modalities_hash: str | None = field(default=None, metadata=stored_as("levels_hash"))
    objective: str = "labels"
    target: str = "majority"
    ambiguous_clips: int = 0
    described_clips: int | None = None
    pretrained_sha256: str | None = None
    parameters: int | None = None
    num_frames: int | None = None
    sampling: str | None = None
    views: int | None = None
    crops: int = 1
    mirror: bool = False
    ema: float = 0.0
    temperature: float | None = None
    calibration: CalibrationScores | None = None
    device: str | None = None
    lost_clips: int = 0
    skipped_steps: int = 0
    drift: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    folds_hash: str | None = None
    sets: list[TrainedSet] = field(default_factory=list)
    others: list[SetScores] = field(default_factory=list)
    votes: VoteScores | None = None
    endpoint: EndpointTest | None = None

    @property
    def without_class(self) -> dict[str, int]:
        """The clips for which a model at an endpoint named no class, by :data:`NO_CLASS`."""
        columns = [(name, i) for i, name in enumerate(self.classes) if name in NO_CLASS]
        return {name: sum(row[i] for row in self.confusion) for name, i in columns}

    @property
    def scores(self) -> Scores:
        """The metrics alone."""
        return Scores(**{f.name: getattr(self, f.name) for f in fields(Scores)})


@dataclass(frozen=True)
class AttemptRecord:
    """One job's line in ``status.json``.

    ``device`` is the product name of the GPU or processor, ``device_type`` is ``cuda`` or ``cpu``.
    ``started`` and ``ended`` are ISO 8601 times; ``ended`` is None while the attempt runs, and
    after it was killed. ``steps_repeated`` counts the steps of an earlier attempt, made after its
    last checkpoint, that this attempt repeats.
    """

    job: str | None = None
    array: str | None = None
    nodes: str = ""
    device: str | None = None
    device_type: str | None = None
    world_size: int = 1
    from_step: int | None = None
    steps_repeated: int | None = field(default=None, metadata=stored_as("undone_steps"))
    started: str | None = None
    ended: str | None = None
    why: str | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class FoldStatus(Record):
    """``fold-K/status.json``: the state of a fold and its attempts, oldest first.

    ``state`` is STARTING, RUNNING, DONE, PREEMPTED or FAILED. ``steps`` is the step at which
    training ends; None until it is known. ``phase`` is the :class:`~dfer_dist.runs.status.Phase` of
    an attempt that runs; earlier versions did not record it.
    """

    state: str = ""
    steps: int | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    phase: str = ""

    @property
    def last(self) -> AttemptRecord | None:
        """The newest attempt, or None."""
        return self.attempts[-1] if self.attempts else None


@dataclass(frozen=True)
class TrackingInfo:
    """Where a run is tracked: a part of ``run.json``.

    ``key`` is the run's own identifier, which every MLflow run of it has as a tag. ``run_id`` and
    ``folds`` (by fold number) are MLflow run ids; they are empty until the server has answered.
    ``closed`` is the status with which the parent run ended. ``given_up`` lists folds that will
    not be trained. ``root`` and ``inode`` are the path and the inode of the run's folder, by which
    a copy of it is recognised. ``metric_names`` is the version of the metrics' names in MLflow.
    """

    uri: str
    key: str
    experiment: str
    experiment_id: str | None = None
    run_id: str | None = None
    folds: dict[str, str] = field(default_factory=dict)
    closed: str | None = None
    given_up: list[int] = field(default_factory=list)
    root: str = ""
    inode: int | None = None
    metric_names: int = 1


@dataclass(frozen=True)
class DriftRecord:
    """One resumption of a run with changed settings, data or code.

    ``changes`` maps each key to its old and its new value.
    """

    time: str
    changes: dict[str, list[Any]]


@dataclass(frozen=True)
class RunInfo(Record):
    """``run.json``: what a run is. It is written last, so a folder that has it is complete.

    ``folds`` are those of the data set, ``requested`` those that any command has asked for; earlier
    versions did not record them. ``sweep`` is the name of the folder of the run's
    :class:`~dfer_dist.runs.sweep.SweepDir`, empty for a run of its own.
    """

    remedy: ClassVar[str] = "it is damaged"

    folds: list[int]
    name: str = ""
    experiment: str = ""
    dataset: str = ""
    classes: list[str] = field(default_factory=list)
    config_hash: str = ""
    index_hash: str = ""
    tracking: TrackingInfo | None = None
    drift: list[DriftRecord] = field(default_factory=list)
    requested: list[int] = field(default_factory=list)
    sweep: str = ""

    @property
    def folds_to_train(self) -> list[int]:
        """The folds that were asked for; all if that is not known."""
        return self.requested or self.folds

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str) -> Self:
        """Return the record; the first version identified a tracked run by its MLflow run id."""
        tracking = values.get("tracking")
        if isinstance(tracking, Mapping):
            first_version = {
                "key": tracking.get("run_id"),
                "experiment": values.get("dataset", ""),
            }
            values = {**values, "tracking": {**first_version, **tracking}}
        return super().from_json(values, source)


@dataclass(frozen=True)
class GitState:
    """The commit of the checkout that a run was started from, and its uncommitted changes."""

    sha: str | None = None
    diff: str | None = None


@dataclass(frozen=True)
class DataOrigin:
    """The packed data set that a run was trained on; several are in ``sets`` one by one."""

    name: str
    hash: str
    shards: str
    sets: list[DataOrigin] = field(default_factory=list)


@dataclass(frozen=True)
class Provenance(Record):
    """``provenance.json``: code, packages, command, machine and data of a run.

    ``python_path`` is PYTHONPATH of the command; its packages come after the run's own code.
    """

    time: str = ""
    command: list[str] = field(default_factory=list)
    host: str = ""
    user: str = ""
    python: str = ""
    platform: str = ""
    cpu_count: int | None = None
    dfer_dist: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    git: GitState | None = None
    code_hash: str = ""
    python_path: str = ""
    data: DataOrigin | None = None
