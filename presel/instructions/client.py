"""A server of chat completions: when it is asked again, and what may be told of its answers."""

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
from presel.instructions.http import Client, Phase, RequestFailed, Response

_RETRIED = {408, 409, 429}
# The key, or the account behind it, is not accepted: no other request would fare better. A 403 may be about
# the image.
_CLOSED = {401, 402}
_SPENT_UP = "insufficient_quota"
_LONGEST_BACKOFF_S = 60.0
_CHECK_S = 10.0
_YEAR_S = 365 * 86_400.0
_MASK = "[key]"
# What is shorter is a stand-in such as EMPTY, no secret, and may be a word of an answer.
_SHORTEST_SECRET = 6


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
    """Sends chat-completion requests, from many threads at once, in a `with` block; never tells its key."""

    def __init__(
        self,
        base_url: str,
        key_variable: str | None,
        *,
        timeout_s: float,
        backoff_s: float,
        max_retry_after_s: float,
    ) -> None:
        """Sends nothing yet.

        Args:
            base_url: Where the API is, up to and with `/v1`.
            key_variable: Environment variable that holds the key; None for a server without keys.
            timeout_s: How long a request may take, from the connection to the last byte of the answer.
            backoff_s: Wait before the first repetition; it doubles with each, up to a minute.
            max_retry_after_s: Longest wait that a server may ask for.

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
        self._max_retry_after_s = max_retry_after_s
        self._client = Client(base_url)

    def __enter__(self) -> Self:
        """Makes connections possible."""
        self._client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Closes all connections."""
        self._client.__exit__(*error)

    def check(self) -> None:
        """Makes sure that the server can be reached, and does not refuse the key.

        Raises:
            PreselError: If not.
        """
        try:
            reply = self._reply(self._request("GET", "models", None, _CHECK_S))
        except RequestFailed as failure:
            if failure.phase > Phase.CONNECTING:
                # It is there, and busy (requests are repeated), or has very many models.
                return
            raise PreselError(
                f"instructions.base_url: cannot reach {self.base_url} ({failure}); start the server "
                "or mend the address"
            ) from None
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

        Returns:
            The answer, or an error that is one: what a content filter says is final.

        Raises:
            Again: If another try may get an answer.
            Unanswered: If none will.
            PreselError: If no other request will get one either.
        """
        try:
            reply = self._reply(self._request("POST", "chat/completions", body, self._timeout_s))
        except RequestFailed as failure:
            raise Again(str(failure), text=self._charged(failure)) from None
        content = reply.content
        if isinstance(content, dict) and is_final_error(content):
            return content
        if not 200 <= reply.status < 300:
            raise self._failure(reply.status, reply)
        if isinstance(content, str):
            raise Again("an answer that is no JSON object", text=content)
        if is_error(content):
            # Gateways report so what the server behind them said.
            raise self._failure(_code(content["error"]), reply)
        return content

    def pause(self, repetition: int, after: float) -> float:
        """Seconds to wait before a request is sent again.

        Args:
            repetition: From 1.
            after: What the server asked for.
        """
        # Spread out, so that requests turned away together do not come back together.
        longest = min(_LONGEST_BACKOFF_S, self._backoff_s * 2 ** (repetition - 1))
        return max(after, random.uniform(longest / 2, longest))

    def _failure(self, status: int, reply: _Reply) -> Exception:
        if status in _CLOSED or _SPENT_UP in str(reply.content):
            return self._closed(reply)
        reason = f"{status} {_message(reply.content)}"
        if status not in _RETRIED and status < 500:
            return Unanswered(reason)
        if reply.retry_after > self._max_retry_after_s:
            return PreselError(
                f"{self.base_url} wants no request ({reason}) for longer than "
                f"instructions.max_retry_after_s={self._max_retry_after_s:g}; run again "
                f"{_time_after(reply.retry_after)}: what was answered is kept"
            )
        return Again(reason, reply.retry_after)

    def _request(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Response:
        return self._client.request(method, f"{self.base_url}/{path}", self._headers, body, timeout_s)

    def _reply(self, response: Response) -> _Reply:
        retry_after = seconds_to_wait(response.headers.get("Retry-After"))
        return _Reply(response.status, self._content(response.body), retry_after)

    def _charged(self, failure: RequestFailed) -> str | None:
        """As much as came of an answer that may have been charged for, if one may."""
        if failure.status is not None:
            return self._masked(_text(failure.body)) if failure.status < 300 else None
        # The request arrived, and may be worked on all the same.
        return "" if failure.phase is Phase.WAITING and failure.late else None

    def _content(self, sent: bytes) -> Completion | str:
        """What was sent, without the key."""
        text = _text(sent)
        try:
            found = json.loads(text)
            # Written anew, because a key can be escaped in many ways.
            text = self._masked(json.dumps(found, ensure_ascii=False))
            return json.loads(text) if is_completion(found) else text
        # Brackets without end nest deeper than Python reads.
        except (ValueError, RecursionError):
            return self._masked(text)

    def _masked(self, text: str) -> str:
        if self._key is None or len(self._key) < _SHORTEST_SECRET:
            return text
        for written in {self._key, json.dumps(self._key)[1:-1], self._key.replace("/", "\\/")}:
            text = text.replace(written, _MASK)
        return text

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


def _text(sent: bytes) -> str:
    return sent.decode("utf-8-sig", errors="replace")


def _code(error: Any) -> int:
    """The status that an error in an answer stands for."""
    code = str(error.get("code") if isinstance(error, dict) else None)
    return int(code) if code.isdecimal() and len(code) == 3 else 500


def _message(content: Completion | str) -> str:
    """What a server says of a failure, in one line of moderate length."""
    error = content.get("error", content) if isinstance(content, dict) else content
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:200] or "without a word"


def seconds_to_wait(retry_after: str | None) -> float:
    """What the header Retry-After asks to wait: seconds, or until a date; 0 where it makes no sense."""
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
