"""HTTP requests that end at a deadline and in bounded memory, whatever the server sends.

Only the transport of `httpx2` is used: its timeouts apply per read, and its client reads bodies of any size.
"""

import asyncio
import os
import ssl
import threading
import zlib
from collections.abc import Mapping
from concurrent import futures
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from httpx2 import AsyncHTTPTransport, HTTPError, InvalidURL, Limits, Proxy, Request

from presel.errors import PreselError
from presel.instructions.secrets import is_this_machine

# Maximum size of a response in bytes, encoded and decoded; chat completions take some kilobytes.
MAX_BODY = 1 << 20
_CLOSE_TIMEOUT_S = 1.0


class Phase(IntEnum):
    """Progress of a request."""

    CONNECTING = 0
    SENDING = 1
    WAITING = 2
    READING = 3


class Response(NamedTuple):
    """A complete response; header names are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class RequestFailed(Exception):
    """A request without a complete response; the message is the reason.

    Attributes:
        phase: Its progress.
        status: The response's status, if one was received.
        body: The part of the body that was received.
    """

    def __init__(self, reason: str, phase: Phase, status: int | None, body: bytes) -> None:
        """Takes the reason and the attributes."""
        super().__init__(reason)
        self.phase = phase
        self.status = status
        self.body = body


class Client:
    """Sends requests from many threads, with one event loop in its own thread.

    An event loop can cancel any wait at the deadline: DNS, connecting, the TLS handshake, sending, the next
    byte. A socket's timeout starts again with every byte.

    Redirects are not followed, cookies not stored. Each request has its own connection: on a shared one, a
    second response to one request would be taken for the answer to the next.
    """

    def __init__(self, url: str) -> None:
        """Reads from the environment which proxy, if any, is used for requests to this URL.

        Raises:
            PreselError: If the environment's proxy is invalid.
        """
        self._proxy = _proxy(url)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        """Starts the event loop."""
        # The number of concurrent requests is limited by the calling threads.
        limits = Limits(max_connections=None, max_keepalive_connections=0)
        # Python's default context: the system's certificates, or those of SSL_CERT_FILE.
        context = ssl.create_default_context()
        self._transport = AsyncHTTPTransport(context, proxy=self._proxy, limits=limits, trust_env=False)
        # A daemon thread, so that the program can exit while requests are in flight.
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cancels requests in flight, and closes all connections."""
        closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        futures.wait([closing], _CLOSE_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> Response:
        """Sends a request and waits for the complete response.

        Raises:
            RequestFailed: If there is none within `timeout_s`, or it is larger than `MAX_BODY`.
        """
        exchange = _Exchange(self._transport)
        coroutine = exchange.run(method, url, {**headers, "Accept-Encoding": "identity"}, body, timeout_s)
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _close(self) -> None:
        open_ = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_:
            task.cancel()
        await asyncio.gather(*open_, return_exceptions=True)
        await self._transport.aclose()


class _Exchange:
    """One request and its progress."""

    def __init__(self, transport: AsyncHTTPTransport) -> None:
        self._transport = transport
        self._phase = Phase.CONNECTING
        self._status: int | None = None
        self._body = bytearray()

    async def run(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> Response:
        try:
            request = Request(method, url, headers=headers, content=body, extensions={"trace": self._trace})
            async with asyncio.timeout(timeout_s):
                return await self._response(request)
        except TimeoutError:
            raise self._failed(_LATE[self._phase].format(timeout_s)) from None
        # OSError: TLS can fail in the middle of a response.
        except (HTTPError, InvalidURL, OSError) as error:
            raise self._failed(_why(error, self._phase)) from None

    async def _response(self, request: Request) -> Response:
        response = await self._transport.handle_async_request(request)
        self._phase, self._status = Phase.READING, response.status_code
        try:
            async for part in response.aiter_raw():
                self._body += part
                if len(self._body) > MAX_BODY:
                    raise self._failed(_TOO_LARGE)
        finally:
            await response.aclose()
        body = self._decoded(response.headers.get("Content-Encoding", "identity").lower())
        return Response(response.status_code, response.headers, body)

    def _decoded(self, encoding: str) -> bytes:
        if encoding == "identity":
            return bytes(self._body)
        # No encoding is requested, but some servers send gzip all the same.
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise self._failed("a response in an encoding that was not requested")
        decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            body = decoder.decompress(self._body, MAX_BODY)
        except zlib.error:
            raise self._failed(f"a response that is not valid {encoding}") from None
        if not decoder.eof:
            raise self._failed(
                _TOO_LARGE if decoder.unconsumed_tail else f"a response that is not valid {encoding}"
            )
        return body

    async def _trace(self, event: str, _: object) -> None:
        for end, phase in _EVENTS.items():
            if event.endswith(end):
                self._phase = phase

    def _failed(self, reason: str) -> RequestFailed:
        return RequestFailed(reason, self._phase, self._status, bytes(self._body))


# The transport's events; with a proxy, a `CONNECT` request precedes the TLS handshake.
_EVENTS = {
    "start_tls.started": Phase.CONNECTING,
    "send_request_headers.started": Phase.SENDING,
    "send_request_body.complete": Phase.WAITING,
}
_LATE = {
    Phase.CONNECTING: "no connection within {:g} s",
    Phase.SENDING: (
        "not sent within {:g} s (shrink images by instructions.image_side, or raise instructions.timeout_s)"
    ),
    Phase.WAITING: "no answer within {:g} s",
    Phase.READING: "no complete answer within {:g} s",
}
_TOO_LARGE = f"a response of more than {MAX_BODY >> 20} MB"


def _why(error: Exception, phase: Phase) -> str:
    if phase > Phase.CONNECTING:
        # The library's messages quote malformed responses, which may contain the key.
        return "connection dropped, or a response that is not HTTP"
    cause: BaseException | None = error
    while cause is not None:
        # A host with several addresses raises a group, one error per address.
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
        if isinstance(cause, ssl.SSLError):
            return f"no connection: TLS: {getattr(cause, 'verify_message', None) or cause.reason}"
        if isinstance(cause, OSError) and cause.errno:
            return f"no connection: {os.strerror(cause.errno) if cause.errno > 0 else cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    return f"no connection: {error}"


def _proxy(url: str) -> Proxy | None:
    """The environment's proxy for a URL, if any."""
    address = urlsplit(url)
    if is_this_machine(url) or proxy_bypass(address.netloc):
        return None
    named = getproxies().get(address.scheme)
    if named is None:
        return None
    with suppress(InvalidURL, ValueError):
        proxy = Proxy(named)
        if proxy.url.scheme in ("http", "https") and proxy.url.host:
            return proxy
    # The value is not quoted: it may contain a password.
    raise PreselError(
        f"the environment variable {address.scheme}_proxy holds no address that begins with http:// or "
        "https://; correct it, or add the server to no_proxy"
    )
