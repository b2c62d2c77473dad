"""Requests to servers that break every rule: each ends at its deadline, and in bounded memory."""

import gzip
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from presel.instructions.http import MAX_BODY, Client, Phase, RequestFailed

Behavior = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GZIPPED = OK + b"Content-Encoding: gzip\r\n"
DEADLINE_S = 0.25


@contextmanager
def serving(behavior: Behavior, scheme: str = "http") -> Iterator[str]:
    """The address of a server that does this with every connection."""

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            behavior(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/v1"
        listening.shutdown(socket.SHUT_RDWR)


def read_request(connection: socket.socket) -> None:
    # With its body: a connection that is closed before all is read is reset, and the response may be lost.
    received = b""
    while not received.endswith(b"\r\n\r\n{}"):
        part = connection.recv(1 << 16)
        if not part:
            raise ConnectionError("the client has closed the connection")
        received += part


def then(first: bytes, drip: bytes = b"", pause_s: float = 0.01) -> Behavior:
    """Answers with this, then with that again and again."""

    def behave(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(first)
        while drip:
            connection.sendall(drip)
            time.sleep(pause_s)

    return behave


def silent(connection: socket.socket) -> None:
    time.sleep(3600)


def post(client: Client, url: str, body: bytes = b"{}", timeout_s: float = 30.0) -> tuple[int, bytes]:
    status, _, content = client.request("POST", url, {}, body, timeout_s)
    return status, content


def failure(behavior: Behavior, timeout_s: float = 30.0, scheme: str = "http") -> RequestFailed:
    with (
        serving(behavior, scheme) as url,
        Client(url) as client,
        pytest.raises(RequestFailed) as told,
    ):
        post(client, url, timeout_s=timeout_s)
    return told.value


@pytest.mark.parametrize(
    ("behavior", "phase"),
    [
        (silent, Phase.WAITING),
        (then(b"HTTP/1.1 200 ", b"O"), Phase.WAITING),
        (then(OK + b"X: ", b"y"), Phase.WAITING),
        (then(OK, b"X: y\r\n"), Phase.WAITING),
        (then(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), Phase.WAITING),
        (then(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0), Phase.WAITING),
        (then(b"", b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"), Phase.WAITING),
        (then(OK + b"Content-Length: 9999\r\n\r\n", b"x"), Phase.READING),
        (then(OK + b"\r\n", b"\n"), Phase.READING),
        (then(CHUNKED + b"5;", b"x"), Phase.READING),
        (then(CHUNKED, b"1;x\r\n \r\n"), Phase.READING),
        (then(CHUNKED, b"0"), Phase.READING),
        (then(CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: y\r\n"), Phase.READING),
        (then(GZIPPED + b"\r\n\x1f\x8b\x08\x08\0\0\0\0\0\x03", b"n"), Phase.READING),
    ],
)
def test_slow_responses_time_out_at_the_deadline(behavior: Behavior, phase: Phase) -> None:
    failed = failure(behavior, DEADLINE_S)
    assert failed.phase == phase
    assert str(failed).endswith(f"within {DEADLINE_S:g} s")


def test_a_handshake_that_stalls_is_given_up_at_the_deadline() -> None:
    failed = failure(silent, DEADLINE_S, "https")
    assert failed.phase == Phase.CONNECTING
    assert str(failed) == f"no connection within {DEADLINE_S:g} s"


def test_a_server_that_does_not_speak_tls_is_told_from_one_that_is_not_there() -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    failed = failure(behave, scheme="https")
    assert failed.phase is Phase.CONNECTING
    assert str(failed).startswith("no connection: TLS: ")


def test_a_connection_that_stalls_is_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        port = listening.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        url = f"http://127.0.0.1:{port}/v1"
        with Client(url) as client, pytest.raises(RequestFailed, match="no connection within"):
            post(client, url, timeout_s=DEADLINE_S)
        for one in waiting:
            one.close()


def test_a_body_that_nobody_reads_is_given_up_at_the_deadline() -> None:
    with (
        serving(silent) as url,
        Client(url) as client,
        pytest.raises(RequestFailed, match="not sent within") as told,
    ):
        post(client, url, bytes(32 << 20), DEADLINE_S)
    assert told.value.phase == Phase.SENDING


def packed(content: bytes, wbits: int = 31) -> bytes:
    compressor = zlib.compressobj(9, wbits=wbits)
    return compressor.compress(content) + compressor.flush()


@pytest.mark.parametrize(
    ("behavior", "reason"),
    [
        (then(OK + b"\r\n", bytes(1 << 18), 0), "more than 1 MB"),
        (then(CHUNKED, b"40000\r\n" + bytes(1 << 18) + b"\r\n", 0), "more than 1 MB"),
        (then(GZIPPED + b"\r\n" + packed(bytes(8 << 20))), "more than 1 MB"),
        (then(GZIPPED + b"\r\n" + packed(b"{}")[:-4]), "not valid gzip"),
        (then(GZIPPED + b"\r\n{}"), "not valid gzip"),
        (then(OK + b"Content-Encoding: br\r\n\r\n{}"), "encoding that was not requested"),
        (then(OK + b"Content-Encoding: gzip, gzip\r\n\r\n{}"), "encoding that was not requested"),
        (then(OK + b"X: " + bytes(1 << 20)), "connection dropped"),
        (then(OK + b"Content-Length: 5\r\n\r\n{}"), "connection dropped"),
        (then(OK + b"Content-Length: -1\r\n\r\n{}"), "connection dropped"),
        (then(CHUNKED + b"zz\r\n"), "connection dropped"),
        (then(b"no HTTP\r\n\r\n"), "connection dropped"),
        (then(b""), "connection dropped"),
    ],
)
def test_what_is_no_whole_response_is_a_failure_in_bounded_memory(behavior: Behavior, reason: str) -> None:
    failed = failure(behavior)
    assert reason in str(failed)
    assert len(failed.body) <= MAX_BODY + (1 << 16)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", gzip.compress(b"{}")), ("x-gzip", packed(b"{}")), ("deflate", zlib.compress(b"{}"))],
)
def test_a_compressed_response_is_read_although_none_was_asked_for(encoding: str, body: bytes) -> None:
    head = OK + b"Content-Encoding: %s\r\n\r\n" % encoding.encode()
    with serving(then(head + body)) as url, Client(url) as client:
        assert post(client, url) == (200, b"{}")


def test_a_second_response_is_not_taken_for_the_answer_to_the_next_request() -> None:
    numbers = iter(b"123")

    def behave(connection: socket.socket) -> None:
        while True:
            read_request(connection)
            own = OK + b"Content-Length: 1\r\n\r\n%c" % next(numbers)
            connection.sendall(own + OK + b"Content-Length: 6\r\n\r\nforged")

    with serving(behave) as url, Client(url) as client:
        assert [post(client, url)[1] for _ in range(3)] == [b"1", b"2", b"3"]


def test_redirects_are_not_followed_and_cookies_not_sent() -> None:
    received: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        received.append(connection.recv(1 << 16))
        connection.sendall(
            b"HTTP/1.1 307 Moved\r\nLocation: /there\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
        )

    with serving(behave) as url, Client(url) as client:
        assert [post(client, url)[0] for _ in range(2)] == [307, 307]
    assert len(received) == 2
    assert not [one for one in received if b"there" in one or b"ookie" in one]
