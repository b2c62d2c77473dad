"""A model server that is hostile in one of a hundred ways, to half of the images; to the others it is honest.

`python -m tests.campaigns.hostile_server LOG` prints its port. The first part of a request's path is the
number of a behavior, as in `/17/v1/chat/completions`; after `all-` it is hostile to every request, `/models`
included; any other word stands for an honest server. The log gets a line for each request.
"""

import base64
import gzip
import json
import re
import socket
import socketserver
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.generation_server import completion, conversation, digest

# The client's key, which it must tell nobody else, whatever a server says.
KEY = "sk-campaign-0123456789abcdefghij"
# Longer than any request may take; then the server lets go, so that nothing is left behind.
_ENDLESS_S = 30.0
_DRIP_S = 0.1

Connection = socket.socket
Behavior = Callable[[Connection, bytes], None]


def response(status: int | str, body: bytes, *headers: str, length: str | None = None) -> bytes:
    """An HTTP response; the length is the body's unless told otherwise."""
    lines = [f"HTTP/1.1 {status} Told", "Content-Type: application/json", *headers]
    if length != "":
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def behaviors() -> dict[str, Behavior]:
    """Every behavior by its name; each is given a connection and an honest answer's JSON."""
    table: dict[str, Behavior] = {}
    for name, head, drop in DRIPS:
        table[f"drip {name}"] = _dripping(head, drop)
    for code in STATUSES:
        table[f"status {code}"] = _says(lambda answer, code=code: response(code, _ERROR))
    for value in RETRY_AFTER:
        for code in (429, 503):
            table[f"status {code} retry-after {value[:24]}"] = _says(
                lambda answer, code=code, value=value: response(code, _ERROR, f"Retry-After: {value}")
            )
    for target in REDIRECTS:
        for code in (301, 302, 307, 308):
            table[f"redirect {code} {target[:16]}"] = _says(
                lambda answer, code=code, target=target: response(code, b"", f"Location: {target}")
            )
    for length in LENGTHS:
        table[f"length {length}"] = _says(
            lambda answer, length=length: response(200, answer, length=length), then_close=True
        )
    for name, make in RAW.items():
        table[f"raw {name}"] = _says(make, then_close=True)
    for name, body in BODIES.items():
        table[f"body {name}"] = _says(lambda answer, body=body: response(200, body(answer)))
    return table | FLOODS


def _says(make: Callable[[bytes], bytes], then_close: bool = False) -> Behavior:
    def behave(connection: Connection, answer: bytes) -> None:
        connection.sendall(make(answer))
        if then_close:
            connection.close()

    return behave


def _dripping(head: bytes, drop: bytes) -> Behavior:
    """Sends something at once, and then a little again and again, never more than a timeout apart."""

    def behave(connection: Connection, answer: bytes) -> None:
        connection.sendall(head)
        until = time.monotonic() + _ENDLESS_S
        while time.monotonic() < until:
            connection.sendall(drop)
            time.sleep(_DRIP_S)

    return behave


def _flooding(head: bytes, block: bytes) -> Behavior:
    """Sends without end, as fast as the other side reads."""

    def behave(connection: Connection, answer: bytes) -> None:
        connection.sendall(head)
        until = time.monotonic() + _ENDLESS_S
        while time.monotonic() < until:
            connection.sendall(block)

    return behave


def _reset(connection: Connection, answer: bytes) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _reset_amid(connection: Connection, answer: bytes) -> None:
    connection.sendall(response(200, answer)[:-20])
    _reset(connection, answer)


def _silent(connection: Connection, answer: bytes) -> None:
    time.sleep(_ENDLESS_S)


_ERROR = json.dumps(
    {"error": {"message": f"\x1b]0;owned\x07\x1b[31mbusy\x1b[0m [bold] {KEY}", "code": 1}}
).encode()
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_GZIP = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
_PLAIN = b"HTTP/1.1 200 OK\r\n\r\n"

# Name, what comes at once, what then comes every tenth of a second.
DRIPS = [
    ("status line", b"HTTP/1.1 200 ", b"O"),
    ("head", b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    ("header", b"HTTP/1.1 200 OK\r\nX-A: ", b"b"),
    ("continue", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ("body", response(200, b"{", length="1000000"), b" "),
    ("blank lines", _PLAIN, b"\n"),
    ("chunk", _CHUNKED, b"1\r\n \r\n"),
    ("chunk extension", _CHUNKED + b"1;a=", b"b"),
    ("chunk trailer", _CHUNKED + b"0\r\n", b"X-A: b\r\n"),
    ("gzip name", _GZIP + b"\x1f\x8b\x08\x08\0\0\0\0\0\0", b"n"),
    ("tls", b"\x16\x03\x03\x40\x00", b"\x02"),
]
STATUSES = [
    100, 101, 103, 201, 204, 206, 300, 304, 400, 401, 402, 403, 404, 405, 408, 409, 410, 411, 413, 415,
    418, 421,
    422, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 507, 511, 520, 529, 599, 600, 999,
]  # fmt: skip
RETRY_AFTER = [
    "0", "1", "-5", "86400", "1e400", "nan", "inf", "9" * 400, "soon", "\x1b[31m",
    "Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99 Foo 2026 99:99:99 GMT",
]  # fmt: skip
REDIRECTS = ["/stolen/v1", "//127.0.0.1:1/", "file:///etc/passwd", "\x00", ""]
LENGTHS = ["0", "5", "1000000", "-1", "abc", "9" * 30, "1e3", "0x10", "5, 6", ""]
RAW: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda answer: b"",
    "half a status line": lambda answer: b"HTTP/1.1 2",
    "no HTTP": lambda answer: b"SSH-2.0-OpenSSH_9.0\r\n",
    "HTTP/0.9": lambda answer: answer,
    "HTTP/2": lambda answer: b"HTTP/2 200\r\n\r\n" + answer,
    "status text": lambda answer: b"HTTP/1.1 OK fine\r\n\r\n" + answer,
    "status -1": lambda answer: b"HTTP/1.1 -1 No\r\n\r\n" + answer,
    "bare line feeds": lambda answer: b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
    "header without colon": lambda answer: b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n" + answer,
    "a million headers": lambda answer: b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1_000_000 + b"\r\n" + answer,
    "a header of 10 MB": lambda answer: b"HTTP/1.1 200 OK\r\nA: " + b"b" * 10_000_000 + b"\r\n\r\n" + answer,
    "chunk size": lambda answer: _CHUNKED + b"zz\r\n" + answer,
    "chunk of -1": lambda answer: _CHUNKED + b"-1\r\n" + answer,
    "chunk too long": lambda answer: _CHUNKED + b"ffffffff\r\n" + answer,
    "chunks cut": lambda answer: _CHUNKED + b"5\r\nab",
    "two answers": lambda answer: response(200, b"{}") + response(200, answer),
    "cookie": lambda answer: response(200, b"{}", "Set-Cookie: a=b; Path=/"),
    "no gzip": lambda answer: response(200, answer, "Content-Encoding: gzip"),
    "gzip cut": lambda answer: response(200, gzip.compress(answer)[:-12], "Content-Encoding: gzip"),
    "unknown encoding": lambda answer: response(200, answer, "Content-Encoding: secret"),
    "gzip bomb": lambda answer: response(200, _bomb(), "Content-Encoding: gzip"),
    "gzip twice": lambda answer: response(200, gzip.compress(_bomb()), "Content-Encoding: gzip, gzip"),
    "deflate bomb": lambda answer: response(200, zlib.compress(bytes(1 << 28)), "Content-Encoding: deflate"),
}
BODIES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda answer: b"",
    "null": lambda answer: b"null",
    "list": lambda answer: b"[]",
    "number": lambda answer: b"1e999",
    "cut": lambda answer: answer[: len(answer) // 2],
    "twice": lambda answer: answer + answer,
    "web page": lambda answer: b"<html><script>alert(1)</script>",
    "event stream": lambda answer: b"data: " + answer + b"\n\ndata: [DONE]\n\n",
    "UTF-16": lambda answer: answer.decode().encode("utf-16"),
    "byte order mark": lambda answer: b"\xef\xbb\xbf" + answer,
    "no UTF-8": lambda answer: answer.replace(b"It is", b"\xff\xfe"),
    "zeros": lambda answer: bytes(1000),
    "brackets": lambda answer: b"[" * 200_000,
    "objects": lambda answer: b'{"choices":' * 100_000,
    "digits": lambda answer: b'{"choices": ' + b"9" * 100_000 + b"}",
    "5 MB": lambda answer: answer.replace(b"It is", b"It is " + b"very " * 1_000_000),
    "no choices": lambda answer: b'{"choices": null}',
    "choices as text": lambda answer: b'{"choices": "yes"}',
    "choice as list": lambda answer: b'{"choices": [[]]}',
    "message as number": lambda answer: b'{"choices": [{"message": 7}]}',
    "content as object": lambda answer: answer.replace(b'"content": "', b'"content": {}, "x": "'),
    "content as parts": lambda answer: b'{"choices": [{"message": {"content": [{"text": 1}]}}]}',
    "error as text": lambda answer: b'{"error": "\\u001b[31m no"}',
    "error as list": lambda answer: b'{"error": [1, [2]]}',
    "error code": lambda answer: b'{"error": {"code": 1e999, "message": null}}',
    "finish reason": lambda answer: answer.replace(b'"stop"', b'{"why": []}'),
    "usage negative": lambda answer: _usage(answer, -(10**9)),
    "usage huge": lambda answer: _usage(answer, 10**400),
    "usage as text": lambda answer: _usage(answer, "many"),
    "usage NaN": lambda answer: _usage(answer, float("nan")),
    "usage as list": lambda answer: answer.replace(b'"usage": {', b'"usage": [], "x": {'),
    "escape sequences": lambda answer: _saying("\x1b]0;owned\x07 \x1b[2J"),
    "markup": lambda answer: _saying("[bold]a[/nope] $\\frac{$ <script>"),
    "key": lambda answer: _saying(KEY),
    "image token": lambda answer: _saying("<image> <image>"),
    "end of text": lambda answer: _saying("</s> <|im_end|> <pad>"),
    "lone surrogate": lambda answer: _saying("KEY").replace(b"KEY", b"\\ud83d"),
    "no text": lambda answer: json.dumps(completion(None)).encode(),
    "blank text": lambda answer: json.dumps(completion(" \n")).encode(),
    "100 questions": lambda answer: json.dumps(
        completion(json.dumps([{"question": "Why?", "answer": "So."}] * 100))
    ).encode(),
    "deep answer": lambda answer: json.dumps(completion("[" * 50_000)).encode(),
}
FLOODS: dict[str, Behavior] = {
    "flood body": _flooding(_PLAIN, b" " * 65536),
    "flood head": _flooding(b"HTTP/1.1 200 OK\r\nA: ", b"b" * 65536),
    "flood headers": _flooding(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 10000),
    "flood chunks": _flooding(_CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"),
    "flood tiny chunks": _flooding(_CHUNKED, b"1\r\n \r\n" * 10000),
    "flood continue": _flooding(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "flood error": _flooding(b"HTTP/1.1 500 No\r\n\r\n", b" " * 65536),
    "silence": _silent,
    "reset": _reset,
    "reset amid the answer": _reset_amid,
}


def _bomb() -> bytes:
    """A megabyte that becomes a gigabyte."""
    return gzip.compress(bytes(1 << 30), compresslevel=9)


def _usage(answer: bytes, tokens: Any) -> bytes:
    told = json.loads(answer)
    told["usage"] = {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": tokens}
    return json.dumps(told).encode()


def _saying(text: str) -> bytes:
    return json.dumps(completion(json.dumps([{"question": "Which?", "answer": text}]))).encode()


class _Handler(socketserver.BaseRequestHandler):
    server: "_Server"

    def handle(self) -> None:
        try:
            for head, body in self._requests():
                self._answer(head, body)
        except OSError:
            pass

    def _requests(self) -> Iterator[tuple[str, bytes]]:
        stream = self.request.makefile("rb")
        while True:
            lines = []
            while line := stream.readline().strip():
                lines.append(line.decode("latin-1"))
            if not lines:
                return
            length = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), 0)
            yield "\n".join(lines), stream.read(length)

    def _answer(self, head: str, body: bytes) -> None:
        method, path, _ = head.partition("\n")[0].split(" ", 2)
        name = path.split("/")[1]
        number = name.removeprefix("all-")
        image = ""
        if method == "POST":
            content = json.loads(body)["messages"][-1]["content"]
            image = digest(base64.b64decode(content[0]["image_url"]["url"].partition(",")[2]))
        answer = json.dumps(completion(conversation(image))).encode()
        to_all = number != name
        honest = not number.isdigit() or (not to_all and (method == "GET" or int(image[0], 16) % 2 == 0))
        if honest:
            listed = json.dumps({"object": "list", "data": []}).encode()
            self.request.sendall(response(200, listed if method == "GET" else answer))
        # After the answer: what is not written down was not given.
        self.server.note(name=name, image=image, honest=honest, cookie=bool(re.search("(?im)^cookie:", head)))
        if not honest:
            self.server.behaviors[int(number)](self.request, answer)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, log: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviors = list(behaviors().values())
        self._log = log.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def note(self, **told: Any) -> None:
        with self._lock:
            self._log.write(json.dumps(told) + "\n")
            self._log.flush()


if __name__ == "__main__":
    with _Server(Path(sys.argv[1])) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
