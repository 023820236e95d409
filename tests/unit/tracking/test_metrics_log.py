"""The metrics file and what a tracking server receives of it."""

import json
import os
import time
from pathlib import Path

# Importing MLflow starts a process, which a unit test must not do.
import mlflow.entities  # noqa: F401
import pytest

from dfer_dist.runs.layout import FoldDir
from dfer_dist.tracking import uploader
from dfer_dist.tracking.metric_names import MetricNames
from dfer_dist.tracking.metrics_log import MetricsLog
from dfer_dist.tracking.uploader import UploadQueue


class Server:
    """Keeps rows as MLflow does: those that are equal in key, time, step and value once."""

    def __init__(self) -> None:
        self.rows: set[tuple[str, int, int, float]] = set()
        self.requests, self.down, self.status = 0, False, ""

    def __call__(self) -> tuple["Server", str]:
        self._answer()
        self.status = "RUNNING"
        return self, "id"

    def log_batch(self, run_id: str, metrics: list) -> None:
        self._answer()
        assert len(metrics) <= 1000
        self.rows |= {(m.key, m.timestamp, m.step, m.value) for m in metrics}

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status = status

    def _answer(self) -> None:
        self.requests += 1
        if self.down:
            raise ConnectionError("no answer")

    def steps(self, name: str = "4_training/loss") -> list[int]:
        return sorted(step for key, _, step, _ in self.rows if key == name)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(uploader, "_RETRY_SECONDS", 0.05)
    return server


def open_log(root: Path, server: Server | None, keep_bytes: int | None = 0) -> MetricsLog:
    metrics_log = MetricsLog(FoldDir(root).metrics, FoldDir(root).sent, server, keep_bytes)
    metrics_log.start()
    return metrics_log


def ended(status: str):
    return lambda api, run_id: api.set_terminated(run_id, status)


def log(metrics_log: MetricsLog, first: int, last: int) -> int:
    """Lines of steps ``first`` to ``last``; returns the file's size after them."""
    for step in range(first, last + 1):
        metrics_log.log(step, 0, {"loss": 1 / step})
    return metrics_log.size


def steps(fold: FoldDir) -> list[int]:
    return [json.loads(line)["step"] for line in fold.metrics.read_text().splitlines()]


def until(seen) -> None:
    deadline = time.monotonic() + 10
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_line_is_sent_once_a_checkpoint_includes_it(server, tmp_path):
    metrics_log = open_log(tmp_path, server)
    size = log(metrics_log, 1, 5)
    log(metrics_log, 6, 8)
    until(lambda: server.status == "RUNNING")
    assert server.steps() == []
    metrics_log.commit(size)
    until(lambda: server.steps() == [1, 2, 3, 4, 5])
    metrics_log.close(ended("FAILED"))
    assert (server.steps(), server.status) == ([1, 2, 3, 4, 5], "FAILED")
    assert steps(FoldDir(tmp_path)) == list(range(1, 9))


def test_server_is_not_asked_before_the_start(server, tmp_path):
    fold = FoldDir(tmp_path)
    metrics_log = MetricsLog(fold.metrics, fold.sent, server, 0)
    metrics_log.commit(log(metrics_log, 1, 3))
    time.sleep(0.05)
    assert server.requests == 0
    metrics_log.start()
    metrics_log.start()
    until(lambda: server.steps() == [1, 2, 3])
    metrics_log.close()
    assert server.status == "RUNNING"


def test_fold_that_fails_before_the_start_is_closed(server, tmp_path):
    fold = FoldDir(tmp_path)
    MetricsLog(fold.metrics, fold.sent, server, 0).close(ended("FAILED"))
    assert server.status == "FAILED"


def test_repeated_steps_are_stored_once(server, tmp_path):
    """Killed after step 8, resumed from the checkpoint of step 5, in the file and at the server."""
    metrics_log = open_log(tmp_path, server)
    size = log(metrics_log, 1, 5)
    log(metrics_log, 6, 8)
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 9, "epo')  # cut short by the kill
    metrics_log.commit(size)
    metrics_log.close(ended("KILLED"))
    again = open_log(tmp_path, server, size)
    assert (again.num_rolled_back(5), again.size) == (3, size)
    again.commit(log(again, 6, 10))
    again.close(ended("FINISHED"))
    assert steps(FoldDir(tmp_path)) == list(range(1, 11)) == server.steps()


def test_lost_position_file_adds_no_rows(server, tmp_path):
    metrics_log = open_log(tmp_path, server)
    metrics_log.commit(log(metrics_log, 1, 5))
    metrics_log.close(ended("KILLED"))
    rows, size = set(server.rows), metrics_log.size
    FoldDir(tmp_path).sent.unlink()
    open_log(tmp_path, server, size).close(ended("FINISHED"))
    assert server.rows == rows


def test_rows_sent_before_a_rollback_are_not_sent_again(server, tmp_path):
    """The checkpoint of step 8 is damaged: steps 6 to 8 are trained again after they were sent."""
    metrics_log = open_log(tmp_path, server)
    size = log(metrics_log, 1, 5)
    metrics_log.commit(log(metrics_log, 6, 8))
    metrics_log.close(ended("KILLED"))
    time.sleep(0.01)  # other time stamps
    again = open_log(tmp_path, server, size)
    again.commit(log(again, 6, 7))
    again.close(ended("KILLED"))  # stopped again before step 8
    again = open_log(tmp_path, server, again.size)
    again.commit(log(again, 8, 12))
    again.close(ended("FINISHED"))
    assert server.steps() == steps(FoldDir(tmp_path)) == list(range(1, 13))


def test_server_that_comes_back_gets_everything(server, tmp_path, caplog):
    server.down = True
    metrics_log = open_log(tmp_path, server)
    begin = time.perf_counter()
    metrics_log.commit(log(metrics_log, 1, 2000))
    assert time.perf_counter() - begin < 2  # logging does not wait
    until(lambda: server.requests > 2)
    assert caplog.text.count("is sent once the server takes it") == 1
    server.down = False
    until(lambda: len(server.steps()) == 2000)
    metrics_log.close(ended("FINISHED"))
    assert server.steps() == list(range(1, 2001)) == server.steps("4_training/epoch")


def test_close_does_not_wait_for_unreachable_server(server, tmp_path, caplog):
    server.down = True
    metrics_log = open_log(tmp_path, server)
    metrics_log.commit(log(metrics_log, 1, 3))
    begin = time.perf_counter()
    metrics_log.close(ended("FINISHED"), timeout=5)
    assert time.perf_counter() - begin < 2
    assert "could be sent; dfer sync" in caplog.text


def test_finalize_is_called_after_all_metrics(server, tmp_path):
    metrics_log = open_log(tmp_path, server)
    metrics_log.commit(log(metrics_log, 1, 3))
    seen = []
    metrics_log.close(lambda api, run_id: seen.append((run_id, api.steps())))
    assert seen == [("id", [1, 2, 3])]


def test_one_process_at_a_time_uploads(server, tmp_path):
    """A job that writes and sends, and ``dfer sync`` at the same time; then the job ends."""
    metrics_log = open_log(tmp_path, server)
    two, size = log(metrics_log, 1, 2), log(metrics_log, 3, 3)
    until(lambda: server.status == "RUNNING")
    fold = FoldDir(tmp_path)
    other = UploadQueue(fold.metrics, fold.sent)
    assert not other.acquire(size)
    metrics_log.close()
    assert other.acquire(size)
    waiting = open_log(tmp_path, server, size)
    waiting.commit(size)
    time.sleep(0.3)
    assert server.steps() == []
    assert other.send(server, "id", lambda: two) == 2
    other.release()
    until(lambda: server.steps() == [1, 2, 3])
    waiting.close()


def test_lines_survive_a_full_disk(tmp_path, monkeypatch, caplog):
    free = [30]  # bytes that the disk still accepts
    write = os.write

    def full(file: int, data: bytes) -> int:
        if not free[0]:
            raise OSError(28, "No space left on device")
        done = write(file, data[: free[0]])
        free[0] -= done
        return done

    metrics_log = open_log(tmp_path, None)
    monkeypatch.setattr(os, "write", full)
    size = log(metrics_log, 1, 3)
    assert caplog.text.count("takes no more lines for now") == 1
    with pytest.raises(OSError, match="No space"):
        metrics_log.sync()  # no checkpoint may include lines that are not written
    free[0] = 10**6
    metrics_log.sync()
    log(metrics_log, 4, 4)
    metrics_log.close(ended("FINISHED"))
    assert steps(FoldDir(tmp_path)) == [1, 2, 3, 4]
    assert (tmp_path / "metrics.jsonl").read_bytes()[:size].endswith(b"}\n")


def test_lost_lines_are_reported(tmp_path, caplog):
    metrics_log = open_log(tmp_path, None)
    size = log(metrics_log, 1, 3)
    metrics_log.close(ended("FINISHED"))
    again = open_log(tmp_path, None, size + 7)
    assert "has lost at least 7 bytes" in caplog.text
    again.close(ended("FINISHED"))
    os.truncate(tmp_path / "metrics.jsonl", size - 9)  # in the middle of a line
    again = open_log(tmp_path, None, size)
    log(again, 4, 5)
    assert steps(FoldDir(tmp_path)) == [1, 2, 4, 5]


def test_truncated_file_causes_no_busy_loop(server, tmp_path, caplog):
    metrics_log = open_log(tmp_path, server)
    size = log(metrics_log, 1, 3)
    os.truncate(tmp_path / "metrics.jsonl", 10)
    metrics_log.commit(size)
    until(lambda: "was truncated" in caplog.text)
    begin = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - begin < 0.3
    metrics_log.close(ended("FAILED"))


def test_non_finite_values_are_left_out(tmp_path):
    metrics_log = open_log(tmp_path, None)
    metrics_log.log(1, 0, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()).keys() == {
        "step",
        "epoch",
        "time",
        "lr",
    }


def log_rare(metrics_log: MetricsLog, first: int, last: int, lost: int) -> int:
    """Lines with three rare metrics, of which one is not zero from step 7 on."""
    for step in range(first, last + 1):
        counts = {"skipped_steps": 0, "loss_spike": 0.0, "lost_clips": lost * (step >= 7)}
        metrics_log.log(step, 0, {"loss": 1 / step, **counts})
    return metrics_log.size


def lost_clips(server: Server) -> list[tuple[int, float]]:
    name = "4_training/lost_clips"
    return sorted((step, value) for key, _, step, value in server.rows if key == name)


def test_rare_metric_is_sent_whole_once_it_is_not_zero(server, tmp_path):
    metrics_log = open_log(tmp_path, server)
    metrics_log.commit(log_rare(metrics_log, 1, 5, lost=2))
    until(lambda: server.steps() == [1, 2, 3, 4, 5])
    metrics_log.close(ended("KILLED"))
    assert not lost_clips(server)
    again = open_log(tmp_path, server, metrics_log.size)
    again.commit(log_rare(again, 6, 8, lost=2))
    until(lambda: server.steps() == [*range(1, 9)])
    values = [(step, 2 * (step >= 7)) for step in range(1, 9)]
    assert lost_clips(server) == values
    again.close(ended("KILLED"))
    # zero again, as after the shards were copied again
    last = open_log(tmp_path, server, again.size)
    last.commit(log_rare(last, 9, 10, lost=0))
    last.close(ended("FINISHED"))
    assert lost_clips(server) == [*values, (9, 0), (10, 0)]
    rows = set(server.rows)
    assert {name for name, *_ in rows} == {
        "4_training/loss",
        "4_training/epoch",
        "4_training/lost_clips",
    }
    FoldDir(tmp_path).sent.unlink()
    open_log(tmp_path, server, last.size).close(ended("FINISHED"))
    assert server.rows == rows


def test_rare_metric_is_sent_whole_after_a_fault_of_the_server(server, tmp_path, monkeypatch):
    """The server fails between the other metrics of the first line that is not zero and it."""
    metrics_log = open_log(tmp_path, None)
    log_rare(metrics_log, 1, 7, lost=1)
    size = log_rare(metrics_log, 8, 8, lost=0)
    metrics_log.close()
    fold = FoldDir(tmp_path)
    queue = UploadQueue(fold.metrics, fold.sent)
    assert queue.acquire(size)
    queue.send(server, "id", lambda: fold.metrics.read_bytes().index(b'{"step": 7'))
    requests, log_batch = iter([True, False]), server.log_batch

    def fail_once(run_id: str, metrics: list) -> None:
        server.down = not next(requests, True)
        log_batch(run_id, metrics)

    monkeypatch.setattr(server, "log_batch", fail_once)
    with pytest.raises(ConnectionError):
        queue.send(server, "id", lambda: fold.metrics.read_bytes().index(b'{"step": 8'))
    assert queue.send(server, "id", lambda: size) == 2
    queue.release()
    assert lost_clips(server) == [(step, int(step == 7)) for step in range(1, 9)]


def test_run_of_an_earlier_version_keeps_its_names(server, tmp_path):
    metrics_log = MetricsLog(
        FoldDir(tmp_path).metrics, FoldDir(tmp_path).sent, server, 0, MetricNames(1)
    )
    metrics_log.commit(log_rare(metrics_log, 1, 3, lost=0))
    metrics_log.close(ended("FINISHED"))
    names = {"loss", "epoch", "skipped_steps", "loss_spike", "lost_clips"}
    assert {name for name, *_ in server.rows} == names
