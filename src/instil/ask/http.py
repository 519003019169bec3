"""Models behind HTTP: asking with deadlines, a cap on what comes back, and every failure told from every other.

Only this file of the room uses the network. A request ends in one of four ways: an answer; `Passing`, after which
another try is worth while; `Refused`, which concerns this one request; `JudgeError`, after which no request is.
"""

from __future__ import annotations

import ipaddress
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2

from instil.ask.waits import asked_wait
from instil.errors import JudgeError

CONNECT = 5.0  # seconds
SILENCE = 120.0  # seconds without a byte: a server may load its model first
LOOK = 10.0  # seconds for a request about the server itself
LARGEST_REPLY = 1024**2
PASSING = (408, 409, 425, 429, 498)  # the last: Groq's, for no capacity left
ABSENT = (404, 405, 501)  # answers of servers that do not tell of themselves
SHOWN = 200  # characters of a server's message
HEARD = 20_000  # characters of it that are looked at
SECRET = 16  # characters from which on a key is no word that a model says

OURS = ("max_completion_tokens", "max_tokens", "temperature", "seed", "logprobs", "top_logprobs", "cache_prompt")
_UNKNOWN = re.compile(
    r"unsupported|not (?:be )?support|unknown|unrecogni[sz]ed|not recogni[sz]ed|unexpected|not permitted|not allowed"
    r"|not accept|instead|invalid|extra_forbidden|forbidden|does not exist|disallow"
)
_OF_ITS_TEXT = re.compile(r"flagged|moderation|content.?(?:filter|policy)|unsafe|safety system")
_LONG = re.compile(r"context (?:length|window|size)|too (?:long|many)|maximum context")


class Passing(Exception):
    """Not this time; perhaps the next.

    ``wait`` is how many seconds the server asked for, ``status`` and ``said`` what it answered, in lower case.
    """

    def __init__(self, reason: str, wait: float = 0.0, *, status: int = 0, said: str = "") -> None:
        super().__init__(reason)
        self.wait, self.status, self.said = wait, status, said


class Refused(Exception):
    """The server will not answer this request. ``parameter`` names the one it does not know, if it says so."""

    def __init__(self, reason: str, parameter: str = "", *, status: int = 0, said: str = "") -> None:
        super().__init__(reason)
        self.parameter, self.status, self.said = parameter, status, said


class Rejected(JudgeError):
    """The server will answer no request of this kind: it refuses the key, or has no such model."""

    def __init__(self, reason: str, *, status: int = 0, said: str = "") -> None:
        super().__init__(reason)
        self.status, self.said = status, said


class Unreachable(JudgeError):
    """Nothing answers at the address."""


class Http:
    """Requests to one server. Each thread has its own connection.

    Args:
        base: the address that paths are put after; http or https, without user and password.
        key: a secret, sent as a bearer token and never shown.
        timeout: seconds for one reply, from the request to its last byte.
    """

    def __init__(self, base: str, key: str = "", timeout: float = 300.0) -> None:
        self.base = checked_url(base)
        self._key, self._timeout = key, timeout
        self._own = threading.local()
        self._clients: list[httpx2.Client] = []  # of all threads
        self._closed = False

    def close(self) -> None:
        """Close all connections, those in use by other threads as well; there are no further ones."""
        self._closed = True
        while self._clients:
            self._clients.pop().close()

    def get(self, path: str) -> Any:
        """The JSON at a path, or None where the server has no such path. One try, a few seconds.

        Raises:
            Unreachable: nothing answers.
            Passing, Refused, JudgeError: see the head of this file.
        """
        look = min(LOOK, self._timeout)
        status, head, body = self._send("GET", path, None, look, look)
        if status in ABSENT:
            return None
        self._check(status, head, body)
        return self._json(body)

    def look(self, path: str) -> tuple[Any, str]:
        """As `get`; where the server has an error instead of an answer, None and what it said.

        Raises:
            Unreachable: nothing answers.
            Passing: it is still loading, or what it answers is nothing that can be read.
        """
        try:
            return self.get(path), ""
        except Passing as error:
            if error.status < 400 or (error.status == 503 and "load" in error.said):
                raise
            return None, str(error)
        except (Refused, Rejected) as error:
            return None, str(error)

    def post(self, path: str, value: Mapping[str, Any]) -> Any:
        """The JSON that comes back for a JSON object, all at once when it is made."""
        status, head, body = self._send("POST", path, value, self._timeout, self._timeout)
        self._check(status, head, body)
        return self._json(body)

    def post_lines(self, path: str, value: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The objects that come back for a JSON object, one a line (NDJSON); the last must say ``done``."""
        status, head, body = self._send("POST", path, value, self._timeout, min(SILENCE, self._timeout))
        self._check(status, head, body)
        lines = [self._json(line) for line in body.split(b"\n") if line.strip()]
        for line in lines:
            if not isinstance(line, dict):
                raise Passing("a line of the reply is no JSON object")
            if "error" in line:  # comes with status 200 once the stream has begun
                raise self._failure(200, self.words(line), str(line["error"]).lower()[:HEARD])
        if not lines or lines[-1].get("done") is not True:
            raise Passing("the reply ended before it was done")
        return lines

    def _send(
        self, method: str, path: str, value: Mapping[str, Any] | None, timeout: float, silence: float
    ) -> tuple[int, httpx2.Headers, bytes]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "instil"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        body = b""
        if value is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        end = time.monotonic() + timeout
        waits = httpx2.Timeout(silence, connect=min(CONNECT, timeout))
        try:
            with (
                self._client(timeout) as client,
                client.stream(method, self.base + path, content=body, headers=headers, timeout=waits) as answer,
            ):
                if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
                    raise Passing("the reply is compressed, which was not asked for")
                parts, size = [], 0
                for part in answer.iter_raw():
                    parts.append(part)
                    size += len(part)
                    if size > LARGEST_REPLY:
                        raise Passing("the reply is longer than 1 MiB")
                    if time.monotonic() > end:
                        raise Passing(f"no end of the reply within {timeout:g} s")
                whole = b"".join(parts)
                if len(self._key) >= SECRET:  # a server may echo it; a shorter one may be a word of the answer
                    whole = whole.replace(self._key.encode(), b"(key)")
                return answer.status_code, answer.headers, whole
        except httpx2.ConnectError as error:
            raise Unreachable(f"nothing answers at {self.base}: {_first_line(error)}") from error
        except httpx2.ConnectTimeout as error:
            raise Unreachable(f"nothing answers at {self.base} within {CONNECT:g} s") from error
        except httpx2.TimeoutException as error:
            raise Passing(f"no reply within {silence:g} s") from error
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise JudgeError(f"{self.base}: not an address: {_first_line(error)}") from error
        except (ImportError, ValueError) as error:  # a proxy of an unknown kind; a host that is no name
            raise JudgeError(f"{self.base} cannot be asked: {_first_line(error)}") from error
        except (httpx2.HTTPError, OSError, RuntimeError) as error:  # a client closed by the watch raises RuntimeError
            late = f"no end of the reply within {timeout:g} s"
            raise Passing(late if time.monotonic() > end else self.shown(_first_line(error))) from error

    @contextmanager
    def _client(self, timeout: float) -> Iterator[httpx2.Client]:
        """This thread's client, closed by a watch if the request takes too long in any of its parts."""
        client: httpx2.Client | None = getattr(self._own, "client", None)
        if self._closed:
            raise Passing("no further question is wanted")
        if client is None or client.is_closed:
            host = urlsplit(self.base).hostname or ""
            client = self._own.client = httpx2.Client(
                trust_env=not is_loopback(host),  # a proxy cannot reach what is on this machine
                follow_redirects=False,
            )
            self._clients.append(client)
        watch = threading.Timer(timeout + 1.0, client.close)
        watch.daemon = True
        watch.start()
        try:
            yield client
        except BaseException:
            client.close()  # whatever is on its connection belongs to a request that is over
            raise
        finally:
            watch.cancel()

    def _check(self, status: int, head: httpx2.Headers, body: bytes) -> None:
        if 200 <= status < 300:
            return
        said, heard = self._message(body), body[:HEARD].decode("utf-8", "replace")
        if status in PASSING or status >= 500:
            if "insufficient_quota" in said:
                raise JudgeError(f"{self.base}: {said}")
            reason = f"the server answered {status}{': ' + said if said else ''}"
            raise Passing(reason, asked_wait(head, heard), status=status, said=heard.lower())
        if 300 <= status < 400:
            raise JudgeError(f"{self.base} answers with another address (status {status}); give that one")
        raise self._failure(status, said, heard.lower())

    def _failure(self, status: int, said: str, low: str) -> Exception:
        """What an error means that the server explained in words; ``low`` is all of them, in lower case."""
        if status == 402:
            return Rejected(f"{self.base} wants to be paid first (status 402): {said}", status=status, said=low)
        if status in (401, 403) and not _OF_ITS_TEXT.search(low):
            return Rejected(f"{self.base} refuses the key (status {status}): {said}", status=status, said=low)
        if status == 404 or ("not found" in low and "model" in low):
            return Rejected(f"{self.base} does not have it (status {status}): {said}", status=status, said=low)
        if status == 200 or "loading" in low:
            return Passing(f"the server said: {said}", asked_wait({}, low), status=status, said=low)
        return Refused(f"the server refused (status {status}): {said}", _parameter(low), status=status, said=low)

    def _message(self, body: bytes) -> str:
        """What an error's body says, in one line; nothing of a web page."""
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            text = body[: 4 * SHOWN].decode("utf-8", "replace").strip()
            return "" if text.startswith("<") else self.shown(text)
        return self.words(found)

    def words(self, found: Any) -> str:
        """What an error says that came as JSON, in one line."""
        if isinstance(found, list) and len(found) == 1:  # Gemini's
            found = found[0]
        if isinstance(found, dict) and "error" in found:
            inner = found["error"]
            if isinstance(inner, dict):
                words = [str(inner[key]) for key in ("message", "code", "type", "param") if inner.get(key)]
                return self.shown("; ".join(dict.fromkeys(words)) or inner)
            return self.shown(inner)
        return self.shown(found)

    def shown(self, value: Any) -> str:
        """A server's words, short, in one line, without control characters and without the key."""
        text = " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())
        if self._key:
            text = text.replace(self._key, "(key)")
        return text[:SHOWN] + ("..." if len(text) > SHOWN else "")

    def _json(self, body: bytes) -> Any:
        try:
            return json.loads(body.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise Passing("the reply is not UTF-8") from error
        except (ValueError, RecursionError) as error:
            kind = "a web page" if body.lstrip()[:1] == b"<" else "not JSON"
            raise Passing(f"the reply is {kind}") from error


def checked_url(url: str) -> str:
    """An http(s) address without its last slash.

    Raises:
        JudgeError: it is something else, or carries a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise JudgeError(f"not an address: {error}; wanted one such as http://127.0.0.1:8080/v1") from error
    if parts.scheme not in ("http", "https") or not host:
        raise JudgeError(f"{url!r} is not an address; wanted one such as http://127.0.0.1:8080/v1")
    if parts.username is not None or parts.password is not None:
        raise JudgeError(f"the address of {host} carries a user or password; keys come from the environment only")
    if parts.query or parts.fragment:
        raise JudgeError(f"the address of {host} has a query; wanted one such as http://127.0.0.1:8080/v1")
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("example.org")
    (True, True, True, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parameter(said: str) -> str:
    """Which of our parameters the server says it does not know, if any; it may name one for another reason."""
    if not _UNKNOWN.search(said) or _LONG.search(said):
        return ""
    named = [name for name in OURS if re.search(rf"(?<![a-z_]){name}(?![a-z_])", said)]
    if "max_completion_tokens" in named and "max_tokens" in named:
        return "max_tokens"  # "use max_completion_tokens instead of max_tokens"
    return named[0] if named else ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:SHOWN] if lines else type(error).__name__
