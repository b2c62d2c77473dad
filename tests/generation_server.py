"""A chat-completions server that misbehaves as told, in a process of its own, and remembers who asked what.

`python -m tests.generation_server PLAN LOG` prints its port. The plan is the JSON of a `Plan`; the log gets a
line for each request.
"""

import asyncio
import base64
import hashlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Plan:
    """How the server behaves.

    Attributes:
        script: What the first, the second … request about an image gets; the last counts for all that follow.
        odds: Drawn from instead, if given: reply → weight.
        seed: Decides the draws.
        key: The key that it asks for; None takes all comers.
        latency: How long every answer takes, in seconds.
        text: What the model says; None for a conversation that names the image.
        models: Whether it lists its models; otherwise a web page comes in place of them.
    """

    script: Sequence[str] = ("answer",)
    odds: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    key: str | None = None
    latency: float = 0.0
    text: str | None = None
    models: bool = True


class Seen(NamedTuple):
    """A request that came.

    Attributes:
        image: Digest of the image.
        reply: What it got.
        time: When it came.
        at_once: How many requests were waiting for an answer, this one too.
        body: What was asked, without the image.
    """

    image: str
    reply: str
    time: float
    at_once: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Attributes:
        url: Its `base_url`.
        log: What it remembers.
    """

    url: str
    log: Path

    def seen(self) -> list[Seen]:
        """Every request up to now, in order."""
        return [Seen(**json.loads(line)) for line in self.log.read_text().splitlines()]


@contextmanager
def running(folder: Path, plan: Plan) -> Iterator[Running]:
    """Runs a server as long as the block does."""
    log = folder / "requests.jsonl"
    log.touch()
    command = [sys.executable, "-m", "tests.generation_server", json.dumps(asdict(plan)), str(log)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Running(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log)
        finally:
            process.kill()


def digest(image: bytes) -> str:
    """What the server calls an image."""
    return hashlib.sha256(image).hexdigest()[:16]


def conversation(image: str) -> str:
    """What the model says about an image unless told otherwise."""
    return json.dumps([{"question": "Which image is this?", "answer": f"It is {image}."}])


def completion(text: str | None, **changes: Any) -> dict[str, Any]:
    """A chat completion."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "1", "object": "chat.completion", "choices": [choice | changes], "usage": usage}


class _Server:
    def __init__(self, plan: Plan, log: Path) -> None:
        self.plan = plan
        self.random = random.Random(plan.seed)
        self.times: Counter[str] = Counter()
        self.at_once = 0
        self.log = log.open("a", encoding="utf-8")

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                key = next((line.split()[-1] for line in head.splitlines() if line.startswith("Auth")), None)
                if head.startswith("GET"):
                    if self.plan.key not in (None, key):
                        writer.write(_response(401, {"error": {"message": f"no such key: {key}"}}))
                    else:
                        listed = {"object": "list", "data": [{"id": "seer", "object": "model"}]}
                        writer.write(_response(200, listed if self.plan.models else b"<html>Welcome</html>"))
                else:
                    self.at_once += 1
                    try:
                        await self.reply(json.loads(body), key, writer)
                    finally:
                        self.at_once -= 1
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def reply(self, body: dict[str, Any], key: str | None, writer: asyncio.StreamWriter) -> None:
        parts = body["messages"][-1]["content"]
        image = digest(base64.b64decode(parts[0]["image_url"].pop("url").partition(",")[2]))
        if self.plan.odds:
            (reply,) = self.random.choices(list(self.plan.odds), list(self.plan.odds.values()))
        else:
            reply = self.plan.script[min(self.times[image], len(self.plan.script) - 1)]
        self.times[image] += 1
        if self.plan.key not in (None, key):
            reply = "unauthorized"
        self.log.write(json.dumps(Seen(image, reply, time.time(), self.at_once, body)._asdict()) + "\n")
        self.log.flush()
        await asyncio.sleep(self.plan.latency)
        text = conversation(image) if self.plan.text is None else self.plan.text
        error = {"error": {"message": f"{reply} for the key {key}"}}
        match reply:
            case "answer":
                writer.write(_response(200, completion(text)))
            case "uncounted":
                writer.write(_response(200, completion(text) | {"usage": None}))
            case "chunked":
                writer.write(_chunked(completion(text)))
            case "echo":
                said = json.dumps([{"question": "Who asks?", "answer": f"{key} does."}])
                writer.write(_response(200, completion(said)))
            case "escaped echo":
                said = "".join(f"\\u{ord(one):04x}" for one in str(key))
                body_ = json.dumps(completion("Who asks? KEY")).replace("KEY", said)
                writer.write(_response(200, body_.encode()))
            case "gateway":
                busy = {"error": {"message": "busy behind", "code": 429}}
                writer.write(_response(200, busy))
            case "empty":
                writer.write(_response(200, completion("")))
            case "half":
                writer.write(_response(200, completion(text[: len(text) // 2])))
            case "cut":
                writer.write(_response(200, completion(text, finish_reason="length")))
            case "refusal":
                writer.write(_response(200, completion("I'm sorry, but I can't help with that.")))
            case "surrogate":
                writer.write(_response(200, completion(text.replace("Which", "\\ud83d"))))
            case "garbage":
                writer.write(_response(200, b"<html>\xff{{{"))
            case "slow":
                await asyncio.sleep(3600)
            case "trickle":
                writer.write(_response(200, completion(text))[:-20])
                for _ in range(3600):
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.05)
            case "broken":
                writer.write(_response(200, completion(text))[:-20])
                writer.close()
            case "drop":
                writer.close()
            case "unauthorized":
                writer.write(_response(401, error))
            case "quota":
                writer.write(_response(429, {"error": {"message": "pay", "code": "insufficient_quota"}}))
            case "wait":
                writer.write(_response(429, error, "Retry-After: 1"))
            case "wait a little":
                writer.write(_response(429, error, "Retry-After: 0.5"))
            case _ if reply.startswith("after "):
                writer.write(_response(429, error, f"Retry-After: {reply.removeprefix('after ')}"))
            case "filtered":
                writer.write(_response(400, {"error": {"message": "filtered", "code": "content_filter"}}))
            case "filtered behind":
                writer.write(_response(200, {"error": {"message": "filtered", "code": "content_filter"}}))
            case "huge":
                writer.write(_response(200, completion("x" * (2 << 20))))
            case "deep":
                writer.write(_response(200, b"[" * 100_000))
            case "wait until":
                writer.write(
                    _response(503, error, f"Retry-After: {formatdate(time.time() + 2, usegmt=True)}")
                )
            case _:
                writer.write(_response(int(reply), error))


def _response(status: int, content: Any, *headers: str) -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = [
        f"HTTP/1.1 {status} Told",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _chunked(content: Any) -> bytes:
    body = json.dumps(content).encode()
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(body[at : at + 50]), body[at : at + 50]) for at in range(0, len(body), 50)
    )
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


async def _serve(plan: Plan, log: Path) -> None:
    server = await asyncio.start_server(_Server(plan, log).connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(Plan(**json.loads(sys.argv[1])), Path(sys.argv[2])))
