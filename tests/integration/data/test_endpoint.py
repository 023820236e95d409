"""The client of a vision model, against a real server that stalls, refuses and sends nonsense."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from dfer_dist.data.captions.endpoint import (
    KEY_VARIABLE,
    SYSTEM,
    Endpoint,
    NoAnswer,
    RetryPolicy,
    Stopped,
)
from tests.helpers.data.remote import wait_until
from tests.helpers.data.vision_server import (
    PLAIN,
    Fault,
    Vision,
    answer,
    completion,
    cut,
    images,
    send,
    stall,
    status,
    trickle,
)

JPEGS = [b"first", b"second"]


QUICK = RetryPolicy(timeout=0.4, tries=3, wait=0.01)


SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vision]:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    vision = Vision()
    yield vision
    vision.close()


def ask(vision: Vision, policy: RetryPolicy = QUICK) -> str:
    return Endpoint(vision.url, "m", {"temperature": 0}, policy).describe(JPEGS)


def test_request_has_model_prompt_fields_and_frames(vision: Vision) -> None:
    assert ask(vision) == PLAIN
    (request,) = vision.requests
    assert vision.headers[0]["path"] == "/v1/chat/completions"
    assert "Authorization" not in vision.headers[0]
    assert (request["model"], request["temperature"], sorted(request)) == (
        "m",
        0,
        ["messages", "model", "temperature"],
    )
    assert request["messages"][0] == {"role": "system", "content": SYSTEM}
    assert [
        base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) for url in images(request)
    ] == JPEGS


PASSING: dict[str, Fault] = {
    "stalls": stall,
    "trickles": trickle,
    "429": status(429),
    "500": status(500),
    "503": status(503),
    "cuts the body": cut,
    "malformed JSON": answer(b'{"choices": ['),
    "no choices": answer(b'{"object": "error"}'),
    "choices are empty": answer(b'{"choices": []}'),
    "a list": answer(b"[1]"),
    "null": answer(b'{"choices": [{"message": null}]}'),
    "empty": answer(completion(" \n")),
    "no text": answer(completion(None)),
}


@pytest.mark.parametrize("name", PASSING)
def test_describe_retries_temporary_faults(vision: Vision, name: str) -> None:
    vision.faults = [PASSING[name]]
    began = time.monotonic()
    assert ask(vision) == PLAIN
    assert len(vision.requests) == 2
    assert time.monotonic() - began < 5  # a trickle lasts ten seconds


REASONS = {
    "stalls": "no answer within 0.4 s",
    "trickles": "no answer within 0.4 s",
    "429": "answers 429: .*not now",
    "500": "answers 500",
    "cuts the body": "no connection, or it was cut",
    "malformed JSON": "answer is no JSON",
    "no choices": "answer without choices",
    "empty": "empty answer",
}


@pytest.mark.parametrize("name", REASONS)
def test_describe_names_lasting_fault_after_all_tries(vision: Vision, name: str) -> None:
    vision.faults = [PASSING[name]] * 2
    with pytest.raises(NoAnswer, match=REASONS[name]) as e:
        ask(vision, RetryPolicy(timeout=0.4, tries=2, wait=0.01))
    assert len(vision.requests) == 2
    assert not e.value.for_all


def test_describe_without_server_gives_short_reason(vision: Vision) -> None:
    vision.close()
    with pytest.raises(NoAnswer) as e:
        ask(vision)
    assert "Connection refused" in e.value.detail and len(e.value.detail) < 40


@pytest.mark.parametrize(
    ("fault", "reason", "for_all"),
    [
        (status(400), "answers 400", False),
        (status(413), "answers 413", False),
        (status(401), "answers 401", True),
        (status(404), "answers 404", True),
        (answer(completion(None, refusal="I will not")), "refuses: I will not", False),
        (answer(completion("", "content_filter")), "refuses", False),
        (answer(completion("The brows", "length")), "longer than allowed", False),
        (answer(b"x" * (5 << 20)), "megabytes", False),
    ],
)
def test_describe_does_not_retry_permanent_faults(
    vision: Vision, fault: Fault, reason: str, for_all: bool
) -> None:
    vision.faults = [fault]
    with pytest.raises(NoAnswer, match=reason) as e:
        ask(vision)
    assert (len(vision.requests), e.value.for_all) == (1, for_all)


def test_describe_does_not_follow_redirects(vision: Vision) -> None:
    other = Vision()
    vision.faults = [status(307, Location=f"{other.url}/chat/completions")]
    with pytest.raises(NoAnswer, match="answers 307"):
        ask(vision)
    other.close()
    assert other.requests == []


def test_back_off_doubles_with_jitter(vision: Vision) -> None:
    vision.faults = [status(500)] * 3
    ask(vision, RetryPolicy(timeout=5, tries=4, wait=0.1))
    waits = [b - a for a, b in zip(vision.times, vision.times[1:], strict=False)]
    for number, wait in enumerate(waits):
        assert 0.1 * 2**number * 0.5 <= wait < 0.1 * 2**number * 1.5 + 0.5


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_holds_all_requests(vision: Vision, form: str) -> None:
    def later() -> str:
        return (
            "0.6"
            if form == "seconds"
            else format_datetime(datetime.now(UTC) + timedelta(seconds=2), True)
        )

    vision.faults = [lambda request: status(429, Retry_After=later())(request)]
    endpoint = Endpoint(vision.url, "m", {}, RetryPolicy(timeout=5, tries=2, wait=0.01))
    first = threading.Thread(target=endpoint.describe, args=(JPEGS,))
    first.start()
    # the answer 429 has come
    wait_until(lambda: endpoint._rate._next > time.monotonic() + 0.1)
    assert endpoint.describe(JPEGS) == PLAIN
    first.join()
    assert len(vision.times) == 3
    assert vision.times[1] - vision.times[0] >= (0.6 if form == "seconds" else 1.0)


def test_retry_after_of_an_hour_fails(vision: Vision) -> None:
    vision.faults = [status(429, Retry_After="3600")]
    with pytest.raises(NoAnswer, match="much later: in 3600 s") as e:
        ask(vision)
    assert e.value.for_all


def test_requests_are_evenly_spaced_with_retries(vision: Vision) -> None:
    vision.faults = [status(500)] * 2
    endpoint = Endpoint(
        vision.url, "m", {}, RetryPolicy(timeout=5, tries=5, per_minute=600, wait=0.001)
    )
    threads = [threading.Thread(target=endpoint.describe, args=(JPEGS,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = sorted(vision.times)
    assert len(times) == 8
    assert times[-1] - times[0] >= 0.5  # 0.7, but for how long the server takes to notice each


def test_stop_ends_waiting(vision: Vision) -> None:
    vision.faults = [status(429, Retry_After="30")]
    endpoint = Endpoint(vision.url, "m", {}, QUICK)
    threading.Timer(0.3, endpoint.stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        endpoint.describe(JPEGS)
    assert time.monotonic() - began < 5


def test_credential_is_sent_and_redacted(vision: Vision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, f" {SECRET}\n")
    vision.text = lambda _: f"You said {SECRET}. The brows rise."
    assert ask(vision) == "You said [credential]. The brows rise."
    assert vision.headers[0]["Authorization"] == f"Bearer {SECRET}"
    vision.faults = [lambda request: send(request, f"wrong key {SECRET}".encode(), 401)]
    with pytest.raises(NoAnswer) as e:
        ask(vision)
    assert SECRET not in str(e.value) and "[credential]" in str(e.value)


def test_netrc_credential_is_not_sent(
    vision: Vision, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n")
    monkeypatch.setenv("NETRC", str(netrc))
    ask(vision)
    assert "Authorization" not in vision.headers[0]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (answer(completion(None, refusal="No.")), "No."),
        (answer(completion(None, "content_filter")), "content_filter"),
        (
            lambda request: send(request, b'{"error": {"code": "content_filter"}}', 400),
            "content_filter",
        ),
    ],
)
def test_complete_returns_refusals_of_the_server(vision: Vision, fault: Fault, text: str) -> None:
    vision.faults = [fault]
    found = Endpoint(vision.url, "m", {}, QUICK).complete([])
    assert (found.refused, found.text, found.tries) == (True, text, 1)


USAGE = {
    '{"prompt_tokens": 120, "completion_tokens": 8}': (120, 8),
    '{"prompt_tokens": null, "completion_tokens": "8"}': (0, 0),
    '{"prompt_tokens": -1}': (0, 0),
    "null": (0, 0),
    "[7]": (0, 0),
}


@pytest.mark.parametrize("usage", USAGE)
def test_complete_counts_tokens_and_tries(vision: Vision, usage: str) -> None:
    body = completion("anger")[:-1] + f', "usage": {usage}}}'.encode()
    vision.faults = [status(503), answer(body)]
    found = Endpoint(vision.url, "m", {}, QUICK).complete([])
    assert (found.prompt_tokens, found.completion_tokens) == USAGE[usage]
    assert (found.text, found.tries) == ("anger", 2)
