"""The test of a model at an endpoint, with a model in this process in its place."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dfer_dist.data.captions.endpoint import Completion, NoAnswer
from dfer_dist.data.shards.index import Index
from dfer_dist.evaluation.endpoint.classify import Plan, classify, plan_test, stored_answers
from dfer_dist.runs.endpoint import NO_CLASS
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import FoldResult, FoldStatus, Provenance
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.journal import open_journal


class Model:
    """Answers in order; an exception is raised."""

    url = "http://h/v1"

    def __init__(self, *answers: Completion | Exception, model: str = "eye-1", **fields: Any):
        self.model, self.fields = model, {"temperature": 0, "max_tokens": 9, **fields}
        self.answers, self.stop, self.messages = list(answers), threading.Event(), []

    def complete(self, messages: list[dict[str, Any]]) -> Completion:
        self.messages.append(messages)
        answer = self.answers.pop(0) if self.answers else Completion("anger", False, 10, 2)
        if isinstance(answer, Exception):
            raise answer
        return answer


def plan(
    index: Index, root: Path, fold: int | None = 1, *overrides: str, model: Model | None = None
) -> Plan:
    settings = [f"data.shards={index.root}", "data.num_frames=4", *overrides]
    return plan_test("demo", settings, fold, model or Model(), RunDir(root))  # type: ignore[arg-type]


def ask(index: Index, root: Path, *answers: Completion | Exception, fold: int | None = 1) -> Model:
    model = Model(*answers)
    test = plan(index, root, fold)
    test.create(Provenance())
    classify(test, model, 1)  # type: ignore[arg-type]
    return model


def test_classify_sends_each_clip_of_the_fold_once(tiny_shards: Index, tmp_path: Path) -> None:
    model = ask(tiny_shards, tmp_path / "run")
    sent = [json.dumps(messages) for messages in model.messages]
    assert len(sent) == len(set(sent)) == 12
    assert all(name in sent[0] for name in tiny_shards.classes)
    assert not ask(tiny_shards, tmp_path / "run").messages
    assert len(ask(tiny_shards, tmp_path / "run", fold=None).messages) == 48


def test_classify_counts_answers_without_class_as_wrong(tiny_shards: Index, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    answers = [Completion("no", refused=True), Completion("fear?! anger?!"), NoAnswer("late")]
    ask(tiny_shards, run.root, *answers)
    result = FoldResult.read(run.fold(1).result)
    table = pq.read_table(run.fold(1).predictions).to_pydict()
    assert list(result.without_class.values()) == [1, 1, 1]
    assert result.classes == [*tiny_shards.classes, *NO_CLASS]
    assert table["predicted"][:3] == [7, 8, 9]
    right = sum(p == y for p, y in zip(table["predicted"], table["label"], strict=True))
    assert result.n == 12
    assert result.war == pytest.approx(100 * right / 12)
    assert FoldStatus.read(run.fold(1).status).state == "DONE"
    test = result.endpoint
    assert test
    assert (test.requests, test.prompt_tokens, test.completion_tokens) == (11, 90, 18)


def test_classify_sends_failed_clip_again_and_keeps_refusal(
    tiny_shards: Index, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    ask(tiny_shards, run.root, NoAnswer("late"), Completion("no", refused=True))
    assert len(ask(tiny_shards, run.root).messages) == 1
    result = FoldResult.read(run.fold(1).result)
    assert list(result.without_class.values()) == [1, 0, 0]


@pytest.mark.parametrize(("answered", "result"), [(5, False), (11, False)])
def test_classify_stops_at_an_error_of_all_clips(
    tiny_shards: Index, tmp_path: Path, answered: int, result: bool
) -> None:
    answers = [Completion("anger")] * answered
    with pytest.raises(UserError, match=f"answers 401: no; {11 - answered} more .*{answered} answ"):
        ask(tiny_shards, tmp_path / "run", *answers, NoAnswer("answers 401", "no\n", for_all=True))
    assert RunDir(tmp_path / "run").fold(1).result.exists() is result


def test_classify_interrupted_keeps_answers_and_waits_for_none(
    tiny_shards: Index, tmp_path: Path
) -> None:
    hangs = threading.Event()

    class Hanging(Model):
        def complete(self, messages: list[dict[str, Any]]) -> Completion:
            if not self.answers:
                hangs.wait(60)
            return super().complete(messages)

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    test = plan(tiny_shards, tmp_path / "run")
    test.create(Provenance())
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        classify(test, Hanging(Completion("anger")), 2, interrupt)  # type: ignore[arg-type]
    assert time.monotonic() - start < 30
    assert [answer.text for answer in stored_answers(test.run).values()] == ["anger"]
    hangs.set()


def test_progress_counts_only_clips_that_were_sent(tiny_shards: Index, tmp_path: Path) -> None:
    test, seen = plan(tiny_shards, tmp_path / "run"), []
    test.create(Provenance())
    model = Model(Completion("anger"), NoAnswer("answers 401", for_all=True))
    with pytest.raises(UserError, match="10 more clips are not sent"):
        classify(test, model, 1, lambda done, total: seen.append((done, total)))  # type: ignore[arg-type]
    assert max(seen) == (2, 12)


def test_plan_refuses_another_request_in_the_same_folder(
    tiny_shards: Index, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    plan(tiny_shards, root).create(Provenance())
    plan(tiny_shards, root, 2, model=Model(max_tokens=99))
    for overrides, model in (
        (["data.num_frames=8"], Model()),
        ([], Model(model="eye-2")),
        ([], Model(temperature=1)),
    ):
        with pytest.raises(UserError, match="is another run"):
            plan(tiny_shards, root, 1, *overrides, model=model)
    # nor one of a training, nor a folder of something else
    RunDir(root).answers.touch()
    RunDir(root).config.touch()
    with pytest.raises(UserError, match="is another run"):
        plan(tiny_shards, root, model=Model(model="eye-2"))
    (tmp_path / "other").mkdir()
    RunDir(tmp_path / "other").answers.touch()
    with pytest.raises(UserError, match="is not empty"):
        plan(tiny_shards, tmp_path / "other").create(Provenance())


def test_fold_records_where_its_answers_come_from(tiny_shards: Index, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    ask(tiny_shards, run.root, NoAnswer("late"))
    model = Model()
    model.url = "http://other/v1"
    test = plan(tiny_shards, run.root, None, model=model)
    classify(test, model, 1)  # type: ignore[arg-type]
    urls = [test.urls for k in (1, 2) if (test := FoldResult.read(run.fold(k).result).endpoint)]
    assert urls == [["http://h/v1", "http://other/v1"], ["http://other/v1"]]


def test_run_without_an_answer_is_replaced(tiny_shards: Index, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    # a fold has a result once all its clips were sent
    ask(tiny_shards, run.root, *[NoAnswer("late")] * 12)
    assert FoldResult.read(run.fold(1).result).war == 0
    model = Model(model="eye-2")
    other = plan(tiny_shards, run.root, 2, model=model)
    with open_journal(run.answers, "dfer"), pytest.raises(UserError, match="another dfer eval"):
        other.create(Provenance())
    other.create(Provenance())
    assert not run.fold(1).root.exists()
    classify(other, model, 1)  # type: ignore[arg-type]
    result = FoldResult.read(run.fold(2).result)
    assert result.endpoint and result.endpoint.model == "eye-2"
    with pytest.raises(UserError, match="is another run"):
        plan(tiny_shards, run.root)


def test_plan_refuses_unknown_fold(tiny_shards: Index, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fold 6 is out of range"):
        plan(tiny_shards, tmp_path / "run", 6)
