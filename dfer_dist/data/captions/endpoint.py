"""Client of a vision model behind an OpenAI-compatible endpoint (``POST …/chat/completions``).

Frames are sent as JPEGs in data URLs, and to the given address only: redirects are not followed.
The key of a clip is not sent, since in FERV39k it holds the label.
"""

from __future__ import annotations

import base64
import json
import os
import random
import threading
import time
from dataclasses import dataclass, replace
from email.utils import mktime_tz, parsedate_tz
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from dfer_dist.utils.errors import UserError

KEY_VARIABLE = "DFER_ENDPOINT_KEY"

# The prompts are part of a source's hash: a change makes stored descriptions those of another one.
SYSTEM = (
    "You are shown frames of one face, in order of time, taken evenly from a short video clip. "
    "Describe in plain words only what can be seen to move: the brows (raised, lowered, drawn "
    "together), the eyes and lids (widened, narrowed, closed, where they look, tears), the nose, "
    "the cheeks, the mouth, lips and jaw (open, closed, pressed, stretched, corners up or down), "
    "and the head. Say how each changes from the first frames to the last: what begins, grows, "
    "peaks, stays or fades, and how fast. Write three to six short sentences, one for each part of "
    "the face that moves, each of which can stand alone. Do not name or guess an emotion, mood, "
    "intention or reason, and use no word for one. Do not describe who the person is, age, sex, "
    "clothes or background."
)
USER = "Frames in order of time, first to last:"
DEFAULT_FIELDS: dict[str, Any] = {"temperature": 0, "max_tokens": 400}

_MAX_ANSWER = 4 << 20  # bytes
_MAX_BACK_OFF_S = 60.0
_MAX_RETRY_AFTER_S = 600.0  # that a server may ask for
_TEMPORARY = (408, 409, 425, 429)  # statuses below 500 that ask to retry
# statuses that every clip would get
_FOR_ALL = (301, 302, 303, 307, 308, 401, 402, 403, 404, 405)


class NoAnswer(Exception):
    """A description that was not obtained.

    ``reason`` is short and the same for all errors of a kind, ``detail`` is of this one;
    ``for_all`` tells that every clip would fail so. ``retry_after`` is None for good, or the
    seconds that the server asked for, or 0, for an error that may pass.
    """

    def __init__(
        self, reason: str, detail: str = "", for_all: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail
        self.for_all, self.retry_after = for_all, retry_after


class Stopped(Exception):
    """No more requests are sent to the endpoint."""


@dataclass(frozen=True)
class Completion:
    """What a model answers.

    Attributes
    ----------
    text : str
        Or how it refuses.
    refused : bool
        Whether the server says that the model refuses.
    prompt_tokens, completion_tokens : int
        As the server counts them; 0 where it does not.
    tries : int
        Requests until this answer.
    """

    text: str
    refused: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tries: int = 1


@dataclass
class RetryPolicy:
    """How requests are repeated and spaced.

    Attributes
    ----------
    timeout : float
        Seconds of silence and of a whole answer.
    tries : int
        Requests for each clip.
    per_minute : float, optional
        Most requests a minute, evenly spaced.
    wait : float
        Seconds before the second try, doubled for each one after it up to a minute, times 0.5 to
        1.5 at random.
    """

    timeout: float = 120.0
    tries: int = 6
    per_minute: float | None = None
    wait: float = 1.0


class Endpoint:
    """A model at an endpoint; threads may share it.

    Set :attr:`stop` to send no more requests; threads that wait for a retry then give up.

    Parameters
    ----------
    url : str
        Up to the version, such as ``http://localhost:8000/v1``, or with ``/chat/completions``.
    model : str
        Its name there.
    fields : dict
        Further fields of each request.
    policy : RetryPolicy, optional

    Raises
    ------
    UserError
        For an invalid URL or one that holds a password, and for an invalid credential.
    """

    def __init__(
        self, url: str, model: str, fields: dict[str, Any], policy: RetryPolicy | None = None
    ) -> None:
        self.url, self.model, self.fields = completions_url(url), model, fields
        self.stop = threading.Event()
        self._policy = policy or RetryPolicy()
        self._credential = _read_credential()
        self._rate = _RateLimit(self._policy.per_minute, self.stop)
        self._threads = _Session()

    def describe(self, jpegs: list[bytes]) -> str:
        """Return the model's description of a clip, given as frames.

        Raises
        ------
        NoAnswer
            As :meth:`complete`, and if the model refuses.
        Stopped
            If :attr:`stop` was set before an answer came.
        """
        completion = self.complete(build_messages(jpegs))
        if completion.refused:
            raise NoAnswer("the model refuses", completion.text)
        return completion.text

    def complete(self, messages: list[dict[str, Any]]) -> Completion:
        """Return the model's answer to a request.

        Raises
        ------
        NoAnswer
            If all tries failed, or the server refuses.
        Stopped
            If :attr:`stop` was set before an answer came.
        """
        data = json.dumps({**self.fields, "model": self.model, "messages": messages}).encode()
        for number in range(1, self._policy.tries + 1):
            self._rate.acquire()
            try:
                return replace(self._request(data), tries=number)
            except NoAnswer as e:
                if e.retry_after is None or number == self._policy.tries:
                    raise
                wait = self._wait_before_retry(number, e.retry_after)
            if self.stop.wait(wait):
                raise Stopped
        raise AssertionError("unreachable")

    def _wait_before_retry(self, number: int, retry_after: float) -> float:
        """Return the seconds to wait after try ``number``; ``retry_after`` holds all requests."""
        if retry_after > _MAX_RETRY_AFTER_S:
            raise NoAnswer("asks to retry much later", f"in {retry_after:.0f} s", for_all=True)
        self._rate.pause(retry_after)
        back_off = min(self._policy.wait * 2 ** (number - 1), _MAX_BACK_OFF_S)
        return max(retry_after, back_off * random.uniform(0.5, 1.5))

    def _request(self, data: bytes) -> Completion:
        """Send one request. Raises :class:`NoAnswer`."""
        timeout = self._policy.timeout
        deadline = time.monotonic() + timeout
        # uncompressed, so that a piece of the body is never empty before its end
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            with self._threads.session.post(
                self.url,
                data=data,
                headers=headers,
                # also without a credential: requests would look for one in ~/.netrc
                auth=self._authorize,
                timeout=(min(timeout, 10.0), timeout),
                stream=True,
                allow_redirects=False,
            ) as response:
                text = _read_body(response, deadline)
        except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError) as e:
            raise NoAnswer(f"no answer within {timeout:g} s", retry_after=0) from e
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as e:
            detail = self._redact(_root_message(e))
            raise NoAnswer("no connection, or it was cut", detail, retry_after=0) from e
        # how Azure says that a filter took the request
        if response.status_code == 400 and b'"content_filter"' in text:
            return Completion("content_filter", refused=True)
        if response.status_code != 200:
            raise self._refusal(response, text)
        completion = _parse_completion(text)
        return replace(completion, text=self._redact(completion.text))

    def _refusal(self, response: requests.Response, text: bytes) -> NoAnswer:
        status, retry_after = response.status_code, None
        if status in _TEMPORARY or status >= 500:
            retry_after = _parse_retry_after(response.headers.get("Retry-After", "0"))
        detail = self._redact(text.decode(errors="replace"))
        return NoAnswer(f"answers {status}", detail, status in _FOR_ALL, retry_after)

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._credential:
            request.headers["Authorization"] = f"Bearer {self._credential}"
        return request

    def _redact(self, text: str) -> str:
        """Return a server's text without the credential, and fit to be written as UTF-8."""
        if self._credential:
            text = text.replace(self._credential, "[credential]")
        return text.encode(errors="replace").decode()


class _Session(threading.local):
    """A session for each thread."""

    def __init__(self) -> None:
        self.session = requests.Session()


class _RateLimit:
    """Spaces requests evenly, and none before a time that a server asked for."""

    def __init__(self, per_minute: float | None, stop: threading.Event) -> None:
        self._gap, self._stop = 60 / per_minute if per_minute else 0.0, stop
        self._queue, self._lock = threading.Lock(), threading.Lock()
        self._next = 0.0

    def acquire(self) -> None:
        """Wait until a request may be sent. Raises :class:`Stopped`."""
        with self._queue:
            while (left := self._next - time.monotonic()) > 0 or self._stop.is_set():
                if self._stop.wait(left):
                    raise Stopped
            self.pause(self._gap)

    def pause(self, seconds: float) -> None:
        """Let no request be sent for so many seconds from now."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def build_messages(
    jpegs: list[bytes], system: str = SYSTEM, user: str = USER
) -> list[dict[str, Any]]:
    """Return a request's messages: the system prompt, and the frames as data URLs."""
    urls = (f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" for jpeg in jpegs)
    frames = ({"type": "image_url", "image_url": {"url": url}} for url in urls)
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": [{"type": "text", "text": user}, *frames]},
    ]


def completions_url(url: str) -> str:
    """Return the URL that requests are sent to.

    Raises
    ------
    UserError
        If ``url`` is no http or https URL, or has a user, a password, ``?`` or ``#``.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            "--endpoint: give a URL such as http://localhost:8000/v1, without user, password, ? "
            f"and #; a credential belongs in {KEY_VARIABLE}"
        )
    return f"{url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"


def printable_line(text: str, most: int = 100) -> str:
    """Return the beginning of a server's text as one line without control characters."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else " " for c in line)[:most]


def _read_credential() -> str:
    credential = os.environ.get(KEY_VARIABLE, "").strip()
    if not credential.isascii() or not credential.isprintable() or " " in credential:
        raise UserError(f"{KEY_VARIABLE} holds characters that no credential has")
    return credential


def _root_message(e: BaseException) -> str:
    """Return the message of an error's first cause: requests wraps it in its own names."""
    while cause := e.__cause__ or e.__context__:
        e = cause
    return str(e) or type(e).__name__


def _read_body(response: requests.Response, deadline: float) -> bytes:
    """Read an answer; the deadline holds for a server that sends a few bytes at a time, too."""
    data = bytearray()
    while piece := response.raw.read1(1 << 16):
        data += piece
        if len(data) > _MAX_ANSWER:
            raise NoAnswer("answers with megabytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(data)


def _parse_completion(data: bytes) -> Completion:
    """Return the answer in a chat completion."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise NoAnswer("answer is no JSON", retry_after=0) from e
    try:
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
    except (LookupError, TypeError, AttributeError) as e:
        raise NoAnswer("answer without choices", retry_after=0) from e
    tokens = [_token_count(answer, name) for name in ("prompt_tokens", "completion_tokens")]
    if refusal or finish == "content_filter":
        return Completion(str(refusal or finish), True, *tokens)
    if finish == "length":
        raise NoAnswer("answer longer than allowed", "allow more: --body '{\"max_tokens\": 1000}'")
    if not isinstance(text, str) or not text.strip():
        raise NoAnswer("empty answer", retry_after=0)
    return Completion(text.strip(), False, *tokens)


def _token_count(answer: dict[str, Any], name: str) -> int:
    """Return a number in the ``usage`` of a completion; 0 for what is no number of tokens."""
    usage = answer.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else 0
    return count if isinstance(count, int) and count > 0 else 0


def _parse_retry_after(header: str) -> float:
    """Return the seconds of a ``Retry-After`` header, a number or a date (RFC 9110, 10.2.3)."""
    date = parsedate_tz(header)
    try:
        return max(0.0, mktime_tz(date) - time.time() if date else float(header))
    except (ValueError, OverflowError):
        return 0.0
