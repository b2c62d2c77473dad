"""A server of chat completions: when it is asked again, and what may be told of its answers."""

import json
import os
import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Timeout, exceptions, make_headers
from urllib3.util import parse_url

from presel.errors import PreselError
from presel.generation.answers import Completion

_RETRIED = {408, 409, 429}
# The key, or the account behind it, is not accepted: no other request would fare better.
_CLOSED = {401, 402, 403}
_SPENT_UP = "insufficient_quota"
_LONGEST_WAIT_S = 60.0
_LONGEST_RETRY_AFTER_S = 86_400.0
_CONNECT_S = 10.0
_CHUNK = 1 << 16
_MASK = "[key]"
# What is shorter is a stand-in such as EMPTY, no secret, and may be a word of an answer.
_SHORTEST_SECRET = 6
_UNREACHABLE = (
    exceptions.NewConnectionError,
    exceptions.ConnectTimeoutError,
    exceptions.SSLError,
    exceptions.ProxyError,
)


class Unanswered(Exception):
    """An image that the server gives no answer about; the message is the reason."""


class _Retry(Exception):
    """What may go better the next time."""

    def __init__(self, reason: str, after: float = 0.0, text: str | None = None) -> None:
        super().__init__(reason)
        self.after = after
        self.text = text


class Server:
    """Sends chat-completion requests from many threads at once, and never tells its key."""

    def __init__(
        self,
        base_url: str,
        key_variable: str | None,
        *,
        concurrency: int,
        timeout_s: float,
        max_retries: int,
        backoff_s: float,
    ) -> None:
        """Prepares connections; nothing is sent yet.

        Args:
            base_url: Where the API is, up to and with `/v1`.
            key_variable: Environment variable that holds the key; None for a server without keys.
            concurrency: Most requests at once.
            timeout_s: How long an answer may take.
            max_retries: How often a request is repeated.
            backoff_s: Wait before the first repetition; it doubles with each, up to a minute.

        Raises:
            PreselError: If there is no key.
        """
        self.base_url = base_url.rstrip("/")
        self._key_variable = key_variable
        self._key = None if key_variable is None else _key(key_variable)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._backoff_s = backoff_s
        self._pool = _pool(base_url, maxsize=concurrency, block=True, retries=False)

    def check(self) -> None:
        """Makes sure that the server can be reached, and does not refuse the key.

        Raises:
            PreselError: If not.
        """
        url = f"{self.base_url}/models"
        try:
            status, text, _ = self._exchange("GET", url, None, _CONNECT_S)
        except _UNREACHABLE as error:
            raise PreselError(
                f"instructions.base_url: cannot reach {self.base_url} ({self._why(error)}); start the server "
                "or mend the address"
            ) from None
        except exceptions.HTTPError:
            # It is there, and busy; requests are repeated.
            return
        # A key may be allowed to chat and not to list models.
        if status == 401 and "scope" not in text:
            raise self._closed(status, text)

    def complete(self, body: bytes, unreadable: Callable[[str], None], stopped: Event) -> Completion:
        """Sends a request, again where that may help.

        Args:
            body: The request, as JSON.
            unreadable: Takes an answer that is no JSON, which may have been charged for.
            stopped: Ends the wait before a repetition.

        Raises:
            Unanswered: If there is no answer.
            PreselError: If there will be none to any other request either.
        """
        for repetition in range(self._max_retries + 1):
            try:
                return self._once(body)
            except _Retry as error:
                if error.text is not None:
                    unreadable(error.text)
                reason = f"{error}, after {repetition + 1} requests"
                if repetition < self._max_retries and stopped.wait(self._wait(repetition, error.after)):
                    break
        raise Unanswered(reason)

    def _once(self, body: bytes) -> Completion:
        url = f"{self.base_url}/chat/completions"
        try:
            status, text, retry_after = self._exchange("POST", url, body, self._timeout_s)
        except exceptions.HTTPError as error:
            raise _Retry(self._why(error)) from None
        if 200 <= status < 300:
            return _completion(text)
        if status in _CLOSED or _SPENT_UP in text:
            raise self._closed(status, text)
        if status in _RETRIED or status >= 500:
            raise _Retry(f"{status} {_message(text)}", _seconds(retry_after))
        raise Unanswered(f"{status} {_message(text)}")

    def _exchange(
        self, method: str, url: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, str, str | None]:
        """Status, text without the key, and the header Retry-After."""
        deadline = time.monotonic() + timeout_s
        response = self._pool.request(
            method,
            url,
            body=body,
            headers=self._headers,
            timeout=Timeout(connect=min(timeout_s, _CONNECT_S), read=timeout_s),
            preload_content=False,
            redirect=False,
        )
        try:
            content = _read(response, deadline)
        except BaseException:
            # Half an answer is still on its way there.
            response.close()
            raise
        response.release_conn()
        return response.status, self._masked(content), response.headers.get("Retry-After")

    def _masked(self, content: bytes) -> str:
        text = content.decode("utf-8", errors="replace")
        if self._key is None or len(self._key) < _SHORTEST_SECRET:
            return text
        for written in {self._key, json.dumps(self._key)[1:-1], self._key.replace("/", "\\/")}:
            text = text.replace(written, _MASK)
        return text

    def _why(self, error: exceptions.HTTPError) -> str:
        match error:
            case exceptions.NewConnectionError():
                return f"no connection: {getattr(error.__cause__, 'strerror', None) or 'failed'}"
            case exceptions.ConnectTimeoutError():
                return "no connection in time"
            case exceptions.TimeoutError():
                return f"no answer within {self._timeout_s:g} s"
            case exceptions.ProtocolError():
                return "connection dropped"
            case _:
                return str(error)

    def _closed(self, status: int, text: str) -> PreselError:
        if self._key_variable is None:
            who = "sends no key (instructions.key_variable=null); name the environment variable that holds it"
        else:
            who = f"sends the key in {self._key_variable}; check the key and its account"
        return PreselError(
            f"{self.base_url} turns requests away ({status} {_message(text)}); this run {who}, then run the "
            "same command again: what was answered is kept"
        )

    def _wait(self, repetition: int, after: float) -> float:
        # Spread out, so that requests turned away together do not come back together.
        longest = min(_LONGEST_WAIT_S, self._backoff_s * 2**repetition)
        return max(after, random.uniform(longest / 2, longest))


def _key(variable: str) -> str:
    key = os.environ.get(variable, "")
    if not key:
        raise PreselError(
            f"the environment variable {variable} holds no key; set it, or instructions.key_variable=null "
            "for a server without keys"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise PreselError(f"the key in {variable} holds spaces or characters that no key has; set it anew")
    return key


def _pool(url: str, **settings: Any) -> PoolManager:
    """Connections, by the proxy that the environment names, if it does."""
    address = urlsplit(url)
    proxy = None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)
    if proxy is None:
        return PoolManager(**settings)
    return ProxyManager(proxy, proxy_headers=make_headers(proxy_basic_auth=parse_url(proxy).auth), **settings)


def _read(response: BaseHTTPResponse, deadline: float) -> bytes:
    """The body, however slowly it trickles in, but not after the deadline."""
    parts = []
    while part := response.read1(_CHUNK):
        parts.append(part)
        if time.monotonic() > deadline:
            raise exceptions.TimeoutError
    return b"".join(parts)


def _completion(text: str) -> Completion:
    try:
        found = json.loads(text)
    # Brackets without end nest deeper than Python reads.
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _Retry("an answer that is no JSON", text=text)
    return found


def _message(text: str) -> str:
    """What a server says of a failure, in one line of moderate length."""
    try:
        found = json.loads(text)
        error = found.get("error", found)
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, RecursionError, KeyError, AttributeError):
        message = text
    return " ".join(str(message).split())[:200] or "without a word"


def _seconds(retry_after: str | None) -> float:
    """What the header Retry-After asks to wait: seconds, or until a date."""
    if retry_after is None:
        return 0.0
    try:
        if retry_after.strip().isdecimal():
            seconds = float(retry_after)
        else:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)
