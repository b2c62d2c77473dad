"""Client for chat-completion servers: which errors are retried, how long to wait, masking of the key.

Not the `openai` package: here a retry counts against the budget cap, the timeout covers the whole answer,
`Retry-After` may be hours, and a partial answer, which may be billed, is kept.
"""

import json
import math
import os
import random
import time
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Self

from presel.errors import PreselError
from presel.instructions.answers import Completion, is_completion, is_error, is_final_error
from presel.instructions.http import Client, Phase, RequestFailed

_RETRYABLE_STATUSES = {408, 409, 429}
# The key or its account is rejected, so that every request would fail. Not 403, which may concern one image.
_AUTH_STATUSES = {401, 402}
_QUOTA_EXHAUSTED = "insufficient_quota"
_MAX_BACKOFF_S = 60.0
_CHECK_TIMEOUT_S = 10.0
_YEAR_S = 365 * 86_400.0
_MASK = "[key]"
# Shorter keys are placeholders such as EMPTY; masking them could change words of an answer.
_MIN_SECRET_LENGTH = 6


class PermanentError(Exception):
    """A request that fails at every retry; the message is the reason."""


class RetryableError(Exception):
    """A request that may succeed when it is sent again; the message is the reason.

    Attributes:
        retry_after: Seconds to wait, from the header `Retry-After`.
        partial: Received part of an answer that may have been billed; None if it cannot have been.
    """

    def __init__(self, reason: str, retry_after: float = 0.0, partial: str | None = None) -> None:
        """Takes the reason and the attributes."""
        super().__init__(reason)
        self.retry_after = retry_after
        self.partial = partial


class _Reply(NamedTuple):
    """A server's response with the key masked; `content` is text if it is not a JSON object."""

    status: int
    content: Completion | str
    retry_after: float


class ChatClient:
    """Sends chat-completion requests from many threads, in a `with` block; no message contains the key."""

    def __init__(
        self,
        base_url: str,
        key_variable: str | None,
        *,
        timeout_s: float,
        backoff_s: float,
        max_retry_after_s: float,
    ) -> None:
        """Reads the key and the proxy from the environment.

        Args:
            base_url: URL of the API, including `/v1`.
            key_variable: Environment variable that holds the key; None for a server without keys.
            timeout_s: Timeout of a request, from connecting to the last byte of the answer.
            backoff_s: Wait before the first retry; doubles with each, up to a minute.
            max_retry_after_s: Longest `Retry-After` that is honored.

        Raises:
            PreselError: If the key is missing, or the environment's proxy is invalid.
        """
        self.base_url = base_url.rstrip("/")
        self._key_variable = key_variable
        self._key = None if key_variable is None else _key(key_variable)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._timeout_s = timeout_s
        self._backoff_s = backoff_s
        self._max_retry_after_s = max_retry_after_s
        self._client = Client(base_url)

    def __enter__(self) -> Self:
        """Opens the HTTP client."""
        self._client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Closes all connections."""
        self._client.__exit__(*error)

    def check(self) -> None:
        """Raises `PreselError` unless the server is reachable and accepts the key."""
        try:
            reply = self._exchange("GET", "models", None, _CHECK_TIMEOUT_S)
        except RequestFailed as failure:
            if failure.phase > Phase.CONNECTING:
                # Reachable, but busy (requests are retried) or with a very long list of models.
                return
            raise PreselError(
                f"instructions.base_url: cannot reach {self.base_url} ({failure}); start the server "
                "or correct the address"
            ) from None
        # A key may be allowed to chat but not to list models.
        if reply.status == 401 and "scope" not in str(reply.content):
            raise self._auth_error(reply)
        if reply.status == 200 and isinstance(reply.content, str):
            raise PreselError(
                f"instructions.base_url: {self.base_url}/models is not a list of models; correct the "
                "address, which usually ends in /v1"
            )

    def complete(self, body: bytes) -> Completion:
        """Sends a request, as JSON, once; a final error, such as a content filter's, counts as an answer.

        Raises:
            RetryableError: If a retry may succeed.
            PermanentError: If none will.
            PreselError: If every other request will fail too.
        """
        try:
            reply = self._exchange("POST", "chat/completions", body, self._timeout_s)
        except RequestFailed as failure:
            raise RetryableError(str(failure), partial=self._billable_part(failure)) from None
        content = reply.content
        if isinstance(content, dict) and is_final_error(content):
            return content
        if not 200 <= reply.status < 300:
            raise self._failure(reply.status, reply)
        if isinstance(content, str):
            raise RetryableError("the answer is not a JSON object", partial=content)
        if is_error(content):
            # Gateways report an upstream server's error with status 200.
            raise self._failure(_code(content["error"]), reply)
        return content

    def backoff(self, retry: int, retry_after: float) -> float:
        """Seconds to wait before a retry, counted from 1: exponential back-off, at least `retry_after`."""
        # Jitter, so that requests rejected together are not retried together.
        longest = min(_MAX_BACKOFF_S, self._backoff_s * 2 ** (retry - 1))
        return max(retry_after, random.uniform(longest / 2, longest))

    def _failure(self, status: int, reply: _Reply) -> Exception:
        if status in _AUTH_STATUSES or _QUOTA_EXHAUSTED in str(reply.content):
            return self._auth_error(reply)
        reason = f"{status} {_message(reply.content)}"
        if status not in _RETRYABLE_STATUSES and status < 500:
            return PermanentError(reason)
        if reply.retry_after > self._max_retry_after_s:
            return PreselError(
                f"{self.base_url} accepts no request ({reason}) for longer than "
                f"instructions.max_retry_after_s={self._max_retry_after_s:g}; run the same command again "
                f"{_time_after(reply.retry_after)}: answers are kept"
            )
        return RetryableError(reason, reply.retry_after)

    def _exchange(self, method: str, path: str, body: bytes | None, timeout_s: float) -> _Reply:
        response = self._client.request(method, f"{self.base_url}/{path}", self._headers, body, timeout_s)
        retry_after = parse_retry_after(response.headers.get("Retry-After"))
        return _Reply(response.status, self._content(response.body), retry_after)

    def _billable_part(self, failure: RequestFailed) -> str | None:
        """The received part of an answer that may have been billed; None if it cannot have been."""
        if failure.status is not None:
            return self._masked(_text(failure.body)) if failure.status < 300 else None
        # The server has the request, and may process it all the same, also where a gateway ends the wait.
        return "" if failure.phase is Phase.WAITING else None

    def _content(self, sent: bytes) -> Completion | str:
        """The response's body, without the key."""
        text = _text(sent)
        try:
            found = json.loads(text)
            # Serialized again, because JSON can escape a key in many ways.
            text = self._masked(json.dumps(found, ensure_ascii=False))
            return json.loads(text) if is_completion(found) else text
        # RecursionError: nested deeper than Python's limit.
        except (ValueError, RecursionError):
            return self._masked(text)

    def _masked(self, text: str) -> str:
        if self._key is None or len(self._key) < _MIN_SECRET_LENGTH:
            return text
        for written in {self._key, json.dumps(self._key)[1:-1], self._key.replace("/", "\\/")}:
            text = text.replace(written, _MASK)
        return text

    def _auth_error(self, reply: _Reply) -> PreselError:
        if self._key_variable is None:
            sent = "sends no key (instructions.key_variable=null); name the variable that holds it"
        else:
            sent = f"sends the key in {self._key_variable}; check the key and its account"
        return PreselError(
            f"{self.base_url} rejects all requests ({reply.status} {_message(reply.content)}); this run "
            f"{sent}, then run the same command again: answers are kept"
        )


def _key(variable: str) -> str:
    key = os.environ.get(variable, "")
    if not key:
        raise PreselError(
            f"the environment variable {variable} holds no key; set it, or instructions.key_variable=null "
            "for a server without keys"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise PreselError(
            f"the key in {variable} contains spaces or other characters that keys never contain; set it again"
        )
    return key


def _text(sent: bytes) -> str:
    return sent.decode("utf-8-sig", errors="replace")


def _code(error: Any) -> int:
    """The HTTP status of an error inside an answer; 500 if it has none."""
    code = str(error.get("code") if isinstance(error, dict) else None)
    return int(code) if code.isdecimal() and len(code) == 3 else 500


def _message(content: Completion | str) -> str:
    """A server's error message, in one line of limited length."""
    error = content.get("error", content) if isinstance(content, dict) else content
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:200] or "without a message"


def parse_retry_after(retry_after: str | None) -> float:
    """Seconds to wait by the header `Retry-After` (seconds or an HTTP date); 0 if missing or malformed."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return 0.0
    return 0.0 if math.isnan(seconds) else max(seconds, 0.0)


def _time_after(seconds: float) -> str:
    if seconds > _YEAR_S:
        return "in more than a year"
    return f"at {datetime.now() + timedelta(seconds=seconds):%Y-%m-%d %H:%M}"
