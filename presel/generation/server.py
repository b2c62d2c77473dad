"""A server of chat completions: when it is asked again, and what may be told of its answers."""

import json
import math
import os
import random
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Timeout, exceptions, make_headers
from urllib3.util import parse_url

from presel.errors import PreselError
from presel.generation.answers import Completion, is_error

_RETRIED = {408, 409, 429}
# The key, or the account behind it, is not accepted: no other request would fare better. A 403 may be about
# the image.
_CLOSED = {401, 402}
_SPENT_UP = "insufficient_quota"
_LONGEST_WAIT_S = 60.0
_LONGEST_RETRY_AFTER_S = 86_400.0
_CONNECT_S = 10.0
_CHUNK = 1 << 16
_MASK = "[key]"
# What is shorter is a stand-in such as EMPTY, no secret, and may be a word of an answer.
_SHORTEST_SECRET = 6
_UNREACHABLE = (
    exceptions.LocationValueError,
    exceptions.NewConnectionError,
    exceptions.ConnectTimeoutError,
    exceptions.SSLError,
    exceptions.ProxyError,
)


class Unanswered(Exception):
    """An image that the server gives no answer about; the message is the reason."""


class Again(Exception):
    """What may go better the next time; the message is the reason.

    Attributes:
        after: Seconds that the server wants to be left alone.
        text: As much as came of an answer that may have been charged for; None where none can have been.
    """

    def __init__(self, reason: str, after: float = 0.0, text: str | None = None) -> None:
        """Says why, when, and at what cost."""
        super().__init__(reason)
        self.after = after
        self.text = text


class _Reply(NamedTuple):
    """What a server sent, the key masked; the content is text where it is no JSON object."""

    status: int
    content: Completion | str
    retry_after: float


class Server:
    """Sends chat-completion requests from many threads at once, and never tells its key."""

    def __init__(
        self,
        base_url: str,
        key_variable: str | None,
        *,
        concurrency: int,
        timeout_s: float,
        backoff_s: float,
    ) -> None:
        """Prepares connections; nothing is sent yet.

        Args:
            base_url: Where the API is, up to and with `/v1`.
            key_variable: Environment variable that holds the key; None for a server without keys.
            concurrency: Most requests at once.
            timeout_s: How long an answer may take.
            backoff_s: Wait before the first repetition; it doubles with each, up to a minute.

        Raises:
            PreselError: If there is no key, or no way through the environment's proxy.
        """
        self.base_url = base_url.rstrip("/")
        self._key_variable = key_variable
        self._key = None if key_variable is None else _key(key_variable)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._timeout_s = timeout_s
        self._backoff_s = backoff_s
        self._pool = _pool(base_url, maxsize=concurrency, block=True, retries=False)

    def check(self) -> None:
        """Makes sure that the server can be reached, and does not refuse the key.

        Raises:
            PreselError: If not.
        """
        try:
            reply = self._exchange("GET", "models", None, _CONNECT_S)
        except _UNREACHABLE as error:
            raise PreselError(
                f"instructions.base_url: cannot reach {self.base_url} ({self._why(error)}); start the server "
                "or mend the address"
            ) from None
        except (exceptions.HTTPError, Again):
            # It is there, and busy; requests are repeated.
            return
        # A key may be allowed to chat and not to list models.
        if reply.status == 401 and "scope" not in str(reply.content):
            raise self._closed(reply)
        if reply.status == 200 and isinstance(reply.content, str):
            raise PreselError(
                f"instructions.base_url: {self.base_url}/models is no list of models; mend the address, "
                "which mostly ends in /v1"
            )

    def complete(self, body: bytes) -> Completion:
        """Sends a request, once.

        Args:
            body: The request, as JSON.

        Raises:
            Again: If another try may get an answer.
            Unanswered: If none will.
            PreselError: If no other request will get one either.
        """
        try:
            reply = self._exchange("POST", "chat/completions", body, self._timeout_s)
        except exceptions.HTTPError as error:
            # Where the request arrived, it may be worked on all the same.
            arrived = isinstance(error, exceptions.ReadTimeoutError)
            raise Again(self._why(error), text="" if arrived else None) from None
        if not 200 <= reply.status < 300:
            raise self._failure(reply.status, reply)
        if isinstance(reply.content, str):
            raise Again("an answer that is no JSON", text=reply.content)
        if is_error(reply.content):
            # Gateways report so what the server behind them said.
            raise self._failure(_code(reply.content["error"]), reply)
        return reply.content

    def pause(self, repetition: int, after: float) -> float:
        """Seconds to wait before a request is sent again.

        Args:
            repetition: From 1.
            after: What the server asked for.
        """
        # Spread out, so that requests turned away together do not come back together.
        longest = min(_LONGEST_WAIT_S, self._backoff_s * 2 ** (repetition - 1))
        return max(after, random.uniform(longest / 2, longest))

    def _failure(self, status: int, reply: _Reply) -> Exception:
        if status in _CLOSED or _SPENT_UP in str(reply.content):
            return self._closed(reply)
        reason = f"{status} {_message(reply.content)}"
        if status in _RETRIED or status >= 500:
            return Again(reason, reply.retry_after)
        return Unanswered(reason)

    def _exchange(self, method: str, path: str, body: bytes | None, timeout_s: float) -> _Reply:
        deadline = time.monotonic() + timeout_s
        response = self._pool.request(
            method,
            f"{self.base_url}/{path}",
            body=body,
            headers=self._headers,
            # urllib3 sends a body in the time that it has to connect.
            timeout=Timeout(connect=timeout_s, read=timeout_s),
            preload_content=False,
            redirect=False,
        )
        parts: list[bytes] = []
        try:
            parts.extend(_read(response, deadline))
        except exceptions.HTTPError as error:
            response.close()
            half = self._masked(_text(b"".join(parts))) if response.status < 300 else None
            raise Again(self._why(error), text=half) from None
        except BaseException:
            # Half an answer is still on its way there.
            response.close()
            raise
        response.release_conn()
        retry_after = _seconds(response.headers.get("Retry-After"))
        return _Reply(response.status, self._content(b"".join(parts)), retry_after)

    def _content(self, sent: bytes) -> Completion | str:
        """What was sent, without the key."""
        text = _text(sent)
        try:
            found = json.loads(text)
            # Written anew, because a key can be escaped in many ways.
            text = self._masked(json.dumps(found, ensure_ascii=False))
            return json.loads(text) if isinstance(found, dict) else text
        # Brackets without end nest deeper than Python reads.
        except (ValueError, RecursionError):
            return self._masked(text)

    def _masked(self, text: str) -> str:
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
            case exceptions.ProtocolError() if isinstance(error.args[-1], TimeoutError):
                return (
                    f"not sent within {self._timeout_s:g} s (shrink images by instructions.image_side, or "
                    "raise instructions.timeout_s)"
                )
            case exceptions.ProtocolError():
                return "connection dropped"
            case _:
                return str(error)

    def _closed(self, reply: _Reply) -> PreselError:
        if self._key_variable is None:
            who = "sends no key (instructions.key_variable=null); name the environment variable that holds it"
        else:
            who = f"sends the key in {self._key_variable}; check the key and its account"
        return PreselError(
            f"{self.base_url} turns requests away ({reply.status} {_message(reply.content)}); this run "
            f"{who}, then run the same command again: what was answered is kept"
        )


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
    try:
        headers = make_headers(proxy_basic_auth=parse_url(proxy).auth)
        return ProxyManager(proxy, proxy_headers=headers, **settings)
    except (exceptions.LocationValueError, exceptions.ProxySchemeUnknown):
        # The address is not repeated: it may hold a password.
        raise PreselError(
            f"the environment variable {address.scheme}_proxy holds no address that begins with http:// or "
            "https://; mend it, or name the server in no_proxy"
        ) from None


def _read(response: BaseHTTPResponse, deadline: float) -> Iterator[bytes]:
    """The body, however slowly it trickles in, but not after the deadline."""
    while part := response.read1(_CHUNK):
        yield part
        if time.monotonic() > deadline:
            raise exceptions.TimeoutError


def _text(sent: bytes) -> str:
    return sent.decode("utf-8", errors="replace")


def _code(error: Any) -> int:
    """The status that an error in an answer stands for."""
    code = str(error.get("code") if isinstance(error, dict) else None)
    return int(code) if code.isdecimal() and len(code) == 3 else 500


def _message(content: Completion | str) -> str:
    """What a server says of a failure, in one line of moderate length."""
    error = content.get("error", content) if isinstance(content, dict) else content
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:200] or "without a word"


def _seconds(retry_after: str | None) -> float:
    """What the header Retry-After asks to wait: seconds, or until a date."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    if math.isnan(seconds):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)
