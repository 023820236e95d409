"""A vision model behind an OpenAI-compatible endpoint (``POST …/chat/completions``: vLLM, a cloud), asked patiently.

Frames go as JPEGs in data URLs and to the given address only: redirects are not followed. The key of a clip is not sent, since in
FERV39k it holds the label.
"""

from __future__ import annotations

import base64
import json
import os
import random
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from dfer_dist.utils.errors import UserError

KEY_VARIABLE = "DFER_ENDPOINT_KEY"

SYSTEM = (
    "You are shown frames of one face, in order of time, taken evenly from a short video clip. Describe in plain words only what can be seen "
    "to move: the brows (raised, lowered, drawn together), the eyes and lids (widened, narrowed, closed, where they look, tears), the nose, "
    "the cheeks, the mouth, lips and jaw (open, closed, pressed, stretched, corners up or down), and the head. Say how each changes from the "
    "first frames to the last: what begins, grows, peaks, stays or fades, and how fast. Write three to six short sentences, one for each part of "
    "the face that moves, each of which can stand alone. Do not name or guess an emotion, mood, intention or reason, and use no word for one. "
    "Do not describe who the person is, age, sex, clothes or background."
)
USER = "Frames in order of time, first to last:"
BODY: dict[str, Any] = {"temperature": 0, "max_tokens": 400}

_MOST_BYTES = 4 << 20  # of an answer
_LONGEST_WAIT = 60.0  # seconds of back-off
_LONGEST_ASKED = 600.0  # seconds that a server may ask us to wait
_TEMPORARY = (408, 409, 425, 429)  # statuses below 500 that ask to come again
_FOR_ALL = (301, 302, 303, 307, 308, 401, 402, 403, 404, 405)  # what is wrong is not this clip


class NoAnswer(Exception):
    """No description came: ``reason`` in few words, the same for all of a kind; ``detail``; ``for_all``: no clip would get one."""

    def __init__(self, reason: str, detail: str = "", for_all: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.for_all = reason, detail, for_all


class _Passing(Exception):
    """A fault that may pass; the server may have said in how many seconds."""

    def __init__(self, fault: NoAnswer, seconds: float = 0) -> None:
        super().__init__(str(fault))
        self.fault, self.seconds = fault, seconds


class Stopped(Exception):
    """The endpoint is not to be asked any more."""


@dataclass
class Asking:
    """How an endpoint is asked.

    ``timeout`` in seconds, of silence and of a whole answer; ``tries`` for each clip; ``per_minute`` requests, evenly spaced, or None; ``wait``
    in seconds before the second try, doubled for each one after it, times 0.5 to 1.5 at random, at most a minute.
    """

    timeout: float = 120.0
    tries: int = 6
    per_minute: float | None = None
    wait: float = 1.0


class Endpoint:
    """A model at an endpoint; threads may share it.

    Parameters
    ----------
    url : str
        Up to the version, such as ``http://localhost:8000/v1``, or whole with ``/chat/completions``.
    model : str
        Its name there.
    body : dict
        Further fields of each request.
    asking : Asking
        Patience and pace.

    Raises
    ------
    UserError
        For a URL that is none or holds a password, and for a credential that cannot be one.
    """

    def __init__(
        self, url: str, model: str, body: dict[str, Any], asking: Asking | None = None
    ) -> None:
        self.url, self.model, self._body, self._asking = (
            address(url),
            model,
            body,
            asking or Asking(),
        )
        self._secret = _secret()
        self.stop = threading.Event()  # set: no more requests, and waiting ones give up
        self._pace = _Pace(self._asking.per_minute, self.stop)
        self._threads = threading.local()

    def ask(self, jpegs: list[bytes]) -> str:
        """The description of a clip by its frames, as the model gave it.

        Raises
        ------
        NoAnswer
            If none came with all tries, or the server refuses.
        Stopped
            If :attr:`stop` was set before an answer came.
        """
        data = json.dumps({**self._body, "model": self.model, "messages": messages(jpegs)}).encode()
        for number in range(1, self._asking.tries + 1):
            self._pace.turn()
            try:
                return self._once(data)
            except _Passing as e:
                if number == self._asking.tries:
                    raise e.fault from e
                if e.seconds > _LONGEST_ASKED:
                    raise NoAnswer(
                        "asks to come again much later", f"in {e.seconds:.0f} s", True
                    ) from e
                self._pace.hold(e.seconds)
                back_off = min(
                    self._asking.wait * 2 ** (number - 1), _LONGEST_WAIT
                ) * random.uniform(0.5, 1.5)
                wait = max(e.seconds, back_off)
            if self.stop.wait(wait):
                raise Stopped
        raise AssertionError("unreachable")

    def _once(self, data: bytes) -> str:
        """One request. Raises :class:`NoAnswer` or :class:`_Passing`."""
        asking = self._asking
        deadline = time.monotonic() + asking.timeout
        # nothing compressed, so that a piece that comes is never empty before the end
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            with (
                self._session().post(
                    self.url,
                    data=data,
                    headers=headers,
                    auth=self._authorise,  # also where there is no credential: requests would look for one in ~/.netrc
                    timeout=(min(asking.timeout, 10.0), asking.timeout),
                    stream=True,
                    allow_redirects=False,
                ) as response
            ):
                text = _body(response, deadline)
        except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError) as e:
            raise _Passing(NoAnswer(f"no answer within {asking.timeout:g} s")) from e
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as e:
            raise _Passing(NoAnswer("no connection, or it was cut", self._public(_root(e)))) from e
        if response.status_code != 200:
            raise self._refusal(response, text)
        return self._public(_content(text))

    def _refusal(self, response: requests.Response, text: bytes) -> Exception:
        status = response.status_code
        fault = NoAnswer(
            f"answers {status}", self._public(text.decode(errors="replace")), status in _FOR_ALL
        )
        passes = status in _TEMPORARY or status >= 500
        return _Passing(fault, _seconds(response.headers.get("Retry-After"))) if passes else fault

    def _session(self) -> requests.Session:
        if not hasattr(self._threads, "session"):
            self._threads.session = requests.Session()
        session: requests.Session = self._threads.session
        return session

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._secret:
            request.headers["Authorization"] = f"Bearer {self._secret}"
        return request

    def _public(self, text: str) -> str:
        """Text of the server's without the credential, should it say it back, and fit to be written as UTF-8."""
        text = text.replace(self._secret, "[credential]") if self._secret else text
        return text.encode(errors="replace").decode()


class _Pace:
    """When the next request may go: evenly spaced, and not before a time that a server asked for."""

    def __init__(self, per_minute: float | None, stop: threading.Event) -> None:
        self._gap, self._stop = 60 / per_minute if per_minute else 0.0, stop
        self._queue, self._lock = threading.Lock(), threading.Lock()
        self._next = 0.0

    def turn(self) -> None:
        """Wait for one's turn. Raises :class:`Stopped`."""
        with self._queue:
            while (left := self._next - time.monotonic()) > 0 or self._stop.is_set():
                if self._stop.wait(left):
                    raise Stopped
            self._later(time.monotonic() + self._gap)

    def hold(self, seconds: float) -> None:
        """No request for so many seconds from now."""
        self._later(time.monotonic() + seconds)

    def _later(self, when: float) -> None:
        with self._lock:
            self._next = max(self._next, when)


def messages(jpegs: list[bytes]) -> list[dict[str, Any]]:
    """A request's messages: the system prompt, and the frames as data URLs."""
    urls = (f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" for jpeg in jpegs)
    frames = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": [{"type": "text", "text": USER}, *frames]},
    ]


def address(url: str) -> str:
    """Where requests go.

    Raises
    ------
    UserError
        If ``url`` is no http or https URL, or has a user, a password, ``?`` or ``#``.
    """
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole or parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"--endpoint: give a URL such as http://localhost:8000/v1, without user, password, ? and #; a credential belongs in {KEY_VARIABLE}"
        )
    return f"{url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"


def _secret() -> str:
    secret = os.environ.get(KEY_VARIABLE, "").strip()
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise UserError(f"{KEY_VARIABLE} holds letters that no credential has")
    return secret


def _root(e: BaseException) -> str:
    """The words of what is behind an error: those of requests tell their own names above all."""
    while cause := e.__cause__ or e.__context__:
        e = cause
    return str(e) or type(e).__name__


def _body(response: requests.Response, deadline: float) -> bytes:
    """The bytes of an answer; a server that sends a few at a time has no longer than one that sends none."""
    data = bytearray()
    while piece := response.raw.read1(1 << 16):
        data += piece
        if len(data) > _MOST_BYTES:
            raise NoAnswer("answers with megabytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(data)


def _content(data: bytes) -> str:
    """The text in a chat completion."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise _Passing(NoAnswer("answer is no JSON")) from e
    try:
        choice = answer["choices"][0]
        text, why, refusal = (
            choice["message"].get("content"),
            choice.get("finish_reason"),
            choice["message"].get("refusal"),
        )
    except (LookupError, TypeError, AttributeError) as e:
        raise _Passing(NoAnswer("answer without choices")) from e
    if refusal or why == "content_filter":
        raise NoAnswer("the model refuses", str(refusal or why))
    if why == "length":
        raise NoAnswer(
            "answer longer than allowed", "allow more with --body '{\"max_tokens\": 1000}'"
        )
    if not isinstance(text, str) or not text.strip():
        raise _Passing(NoAnswer("empty answer"))
    return text.strip()


def _seconds(header: str | None) -> float:
    """How long a server asks to wait: ``Retry-After`` in seconds or as a date (RFC 9110, 10.2.3); 0 if it says nothing."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(header or "")
    except ValueError:
        return 0.0
    return max(
        0.0,
        ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds(),
    )
