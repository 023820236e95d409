"""Test a vision-language model behind an endpoint: each test clip is sent once.

The result is a run whose folds have predictions and scores as those of training have. Answers are
appended to ``answers.jsonl`` in its folder as they come, and the same test sends only clips without
one. An answer that names no class, and a clip without an answer after all tries, are classes of
their own (:data:`~dfer_dist.runs.endpoint.NO_CLASS`) to which no clip belongs: they count as wrong.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config
from dfer_dist.data.captions.endpoint import USER, Completion, Endpoint, build_messages
from dfer_dist.data.captions.generate import Outcome, PendingClip, request_clips, without_bounds
from dfer_dist.data.captions.store import clip_hashes
from dfer_dist.data.folds.clips import FoldClips, fold_clips, fold_numbers
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.folds.packed import open_folds
from dfer_dist.data.loading.frame_sampling import eval_frames
from dfer_dist.data.shards.index import Index, open_index
from dfer_dist.evaluation.endpoint.answers import answered_class, system_prompt
from dfer_dist.evaluation.metrics import score
from dfer_dist.evaluation.predictions import write_classes
from dfer_dist.runs import records
from dfer_dist.runs.endpoint import FAILED, NO_CLASS, EndpointTest
from dfer_dist.runs.layout import RunDir, parse_folds
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.journal import digest, open_journal, parse_journal

_COMMAND = "dfer eval --endpoint"


@dataclass(frozen=True)
class Answer(Completion):
    """A stored answer; ``url`` is what it was requested from, empty in earlier versions."""

    url: str = ""


# by the hash of the clip
Answers = dict[str, Answer]


@dataclass(frozen=True)
class Plan:
    """A test of a model at an endpoint.

    Attributes
    ----------
    run : RunDir
        Where it is stored.
    experiment : str
    config : Config
        Which data and folds, and which frames of a clip are sent.
    index : Index
    overlay : FoldOverlay or None
        Folds other than the set's own.
    about : dict
        All of a request but the clip's frames; its hash identifies the answers.
    folds : dict of FoldClips
        Those to be tested, by number.
    """

    run: RunDir
    experiment: str
    config: Config
    index: Index
    overlay: FoldOverlay | None
    about: dict[str, Any]
    folds: dict[int, FoldClips]

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return clip_hashes(self.index)

    def clips(self, fold: int) -> Iterator[tuple[PendingClip, int]]:
        """Yield the test clips of a fold as they are sent, and their labels."""
        test = self.folds[fold].test
        for shard, rows in zip(test.shards, test.rows, strict=True):
            table = self.index.sidecar(shard).select(["key", "label", "frames"]).to_pylist()
            for row in range(len(table)) if rows is None else rows.tolist():
                key, label, count = table[row].values()
                # each frame of a short clip once
                frames = dict.fromkeys(eval_frames(count, self.config.data, 1)[0].tolist())
                yield PendingClip(shard, row, key, self._hashes[key], tuple(frames)), label

    def pending(self, answers: Answers) -> tuple[list[PendingClip], int]:
        """Return the clips without an answer, and the number of those with one."""
        clips = [clip for fold in self.folds for clip, _ in self.clips(fold)]
        pending = [clip for clip in clips if clip.hash not in answers]
        return pending, len(clips) - len(pending)

    @property
    def is_stored(self) -> bool:
        """Whether the run is an earlier part of this test."""
        if not self.run.run.is_file():
            return False
        info = self.run.info()
        return (info.config_hash, info.index_hash) == (digest(self.about), self.index.hash)

    def check_name(self) -> None:
        """Raise :class:`UserError` for another run, unless it is a test without an answer."""
        run = self.run
        is_test = run.answers.is_file() and not run.config.is_file()
        is_unanswered = is_test and not stored_answers(run)
        if run.run.is_file() and not self.is_stored and not is_unanswered:
            raise UserError(
                f"{run.root} is another run: its model, prompt, --body, frames, folds or data are "
                "not these; choose another --name"
            )

    def create(self, provenance: records.Provenance) -> None:
        """Make the run's folder, unless it exists; ``provenance`` is without the data.

        Another test of which nothing was answered is replaced.

        Raises
        ------
        UserError
            If the folder has other files, or answers of another test.
        """
        root, index = self.run.root, self.index
        if self.is_stored:
            return
        if self.run.run.is_file() and self.run.answers.is_file():
            # no other process may write it
            with open_journal(self.run.answers, _COMMAND):
                self.check_name()
                shutil.rmtree(root)
        if root.exists() and any(root.iterdir()):
            raise UserError(
                f"{root} is not empty and holds no run: remove it or choose another --name"
            )
        root.mkdir(parents=True, exist_ok=True)
        if self.config.data.folds:
            shutil.copyfile(self.config.data.folds, self.run.folds)
        data = records.DataOrigin(index.name, index.hash, str(index.root))
        replace(provenance, data=data).write(self.run.provenance)
        records.RunInfo(
            name=root.name,
            experiment=self.experiment,
            dataset=index.name,
            classes=list(index.classes),
            folds=fold_numbers(index, self.overlay),
            config_hash=digest(self.about),
            index_hash=index.hash,
        ).write(self.run.run)


def plan_test(
    experiment: str, overrides: list[str], fold: int | None, endpoint: Endpoint, run: RunDir
) -> Plan:
    """Return a test, checked; nothing is sent or written.

    Parameters
    ----------
    experiment : str
        Name or file of the settings that name data, folds, and the frames of a clip.
    overrides : list of str
        Such as ``data.num_frames=8``.
    fold : int, optional
        By default all folds.
    endpoint : Endpoint
    run : RunDir
        An earlier part of the same test, or a folder that does not exist yet.

    Raises
    ------
    UserError
        If the data or the fold is missing, or ``run`` is another run.
    """
    config = load_config(experiment, overrides)
    data, index = config.data, open_index(config.data)
    overlay = open_folds(data, index)
    chosen = fold_numbers(index, overlay)
    if fold is not None:
        chosen = parse_folds(str(fold), chosen)
    about = {
        "model": endpoint.model,
        "system": system_prompt(index.classes),
        "user": USER,
        "body": without_bounds(endpoint.fields),
        "frames": [data.num_frames, data.sampling.name, data.stride],
        "folds": overlay and overlay.hash,
    }
    folds = {k: fold_clips(index, k, overlay) for k in chosen}
    plan = Plan(run, Path(experiment).stem, config, index, overlay, about, folds)
    plan.check_name()
    return plan


def stored_answers(run: RunDir) -> Answers:
    """Return the answers that a run has.

    Raises
    ------
    UserError
        If a line of the file was changed.
    """
    if not run.answers.is_file():
        return {}
    return _answers(parse_journal(run.answers.read_bytes(), str(run.answers), _COMMAND))


def classify(
    plan: Plan,
    endpoint: Endpoint,
    concurrency: int,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Send the clips without an answer, several at a time, and write the results of whole folds.

    A fold is whole if each of its clips has an answer, or has none after all tries.

    Raises
    ------
    UserError
        If requests were stopped (:func:`request_clips` says when), or a clip is damaged.
    OSError
        If an answer cannot be written.
    """
    with open_journal(plan.run.answers, _COMMAND) as journal:
        if not journal.rows:
            journal.append([{"about": plan.about}])
        answers = _answers(journal.rows)
        clips, cached = plan.pending(answers)

        def request(clip: PendingClip, jpegs: list[bytes]) -> None:
            completion = endpoint.complete(build_messages(jpegs, plan.about["system"]))
            answer = Answer(**asdict(completion), url=endpoint.url)
            journal.append([{"key": clip.key, "clip": clip.hash, "answer": asdict(answer)}])
            answers[clip.hash] = answer

        outcome = request_clips(plan.index, clips, request, endpoint, concurrency, progress)
        failed = set() if outcome.stopped_by else set(outcome.no_answer)
        for fold in plan.folds:
            if all(x.hash in answers or x.key in failed for x, _ in plan.clips(fold)):
                _write_fold(plan, fold, answers)
    if outcome.stopped_by:
        raise UserError(
            f"{endpoint.url}: {outcome.stopped_by}; {outcome.not_sent} more clips are not sent, "
            f"{len(answers)} answers are stored: give the same command to send the others"
        )
    if damaged := outcome.examples.get("damaged clip"):
        raise UserError(f"a clip is damaged: {damaged} (copy the shard again)")
    return replace(outcome, cached=cached)


def _answers(rows: list[dict[str, Any]]) -> Answers:
    return {row["clip"]: Answer(**row["answer"]) for row in rows if "clip" in row}


def _write_fold(plan: Plan, fold: int, answers: Mapping[str, Answer]) -> None:
    files, index, data = plan.run.fold(fold), plan.index, plan.config.data
    classes = [*index.classes, *NO_CLASS]
    clips, labels = zip(*plan.clips(fold), strict=True)
    given = [answers.get(clip.hash) for clip in clips]
    names = [answered_class(x, index.classes) if x else FAILED for x in given]
    predicted = [classes.index(name) for name in names]
    tries, prompt, completion = (
        sum(getattr(answer, name) for answer in given if answer)
        for name in ("tries", "prompt_tokens", "completion_tokens")
    )
    urls = sorted({answer.url for answer in given if answer and answer.url})
    files.root.mkdir(exist_ok=True)
    write_classes(files.predictions, [clip.key for clip in clips], labels, predicted)
    records.FoldResult(
        dataset=index.name,
        fold=fold,
        **vars(score(labels, predicted, classes)),
        output="class",
        selection="none",
        epoch=0,
        config_hash=digest(plan.about),
        index_hash=index.hash,
        folds_hash=plan.about["folds"],
        num_frames=data.num_frames,
        sampling=data.sampling.name,
        left_out=list(plan.folds[fold].left_out),
        endpoint=EndpointTest(
            plan.about["model"], plan.about["system"], tries, prompt, completion, urls
        ),
    ).write(files.result)
    records.FoldStatus(state="DONE").write(files.status)
