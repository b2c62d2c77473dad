"""Requests a second of `instructions=openai` on a server that answers at once, beside a bare loop of httpx.

Command: `python experiments/benchmarks/generation.py`. The server is a process of its own on this machine and
answers without looking. Ours reads JPEGs of 640 × 480, asks, keeps every answer in a file and makes the
records; the bare loop reads and encodes the same files, asks, and parses the answers. They take turns, since
machines drift. Ends in one line of JSON. `--images 200` takes fewer, to try it out.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import numpy as np
from common import Row, last_line, table
from PIL import Image

from presel.data.llava import LlavaFiles, TaskRule
from presel.instructions.chat_api import OpenAI
from presel.instructions.prompts import Prompt, Prompts
from presel.instructions.provider import InstructionRequest

_CONCURRENCY = 16
_DIFFERENT = 50
_COMPLETION = json.dumps(
    {
        "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "A bowl."}}],
        "usage": {"prompt_tokens": 500, "completion_tokens": 10, "total_tokens": 510},
    }
).encode()
_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_COMPLETION)
) + _COMPLETION


class _Instant(asyncio.Protocol):
    """Answers once a whole request is there, whatever it says."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._head = b""
        self._missing: int | None = None

    def data_received(self, data: bytes) -> None:
        if self._missing is None:
            self._head += data
            head, found, body = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            self._missing = int(length) - len(body)
        else:
            self._missing -= len(data)
        if self._missing == 0:
            self._head, self._missing = b"", None
            assert isinstance(self._transport, asyncio.WriteTransport)
            self._transport.write(_RESPONSE)


def serve(port: Connection) -> None:
    """Runs the server, and tells its port."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Instant, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def draw(folder: Path, count: int) -> list[InstructionRequest]:
    """JPEGs of 640 × 480, some 80 kB each; names for so many images, several on each file."""
    generator = np.random.default_rng(0)
    for number in range(_DIFFERENT):
        pixels = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(folder / f"{number}.jpg", quality=85)
    digests = [hashlib.sha256((folder / f"{n}.jpg").read_bytes()).hexdigest() for n in range(_DIFFERENT)]
    return [
        InstructionRequest(str(n), f"{n % _DIFFERENT}.jpg", "vqa", digests[n % _DIFFERENT])
        for n in range(count)
    ]


def ours(url: str, images: Path, answers: Path, wanted: list[InstructionRequest]) -> None:
    """The provider, from image files to records."""
    prompt = Prompt(request="{question}", questions=["Describe this image."])
    provider = OpenAI(
        model="instant",
        base_url=url,
        key_variable=None,
        prompts=Prompts(kinds={"detail": prompt}, default="detail"),
        concurrency=_CONCURRENCY,
        answers=answers,
    )
    revealed = provider.reveal(wanted, LlavaFiles(images / "none.json", images, TaskRule()))
    assert len(revealed.records) == len(wanted)


def bare(url: str, images: Path, wanted: list[InstructionRequest]) -> None:
    """The plain way: as many tasks as ours has threads, one client."""

    async def run() -> None:
        waiting = iter(wanted)
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=_CONCURRENCY)) as client:

            async def work() -> None:
                for image in waiting:
                    content = base64.b64encode((images / image.image).read_bytes()).decode()
                    shown = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{content}"}}
                    parts = [shown, {"type": "text", "text": "Describe this image."}]
                    body = {"model": "instant", "messages": [{"role": "user", "content": parts}]}
                    response = await client.post(f"{url}/chat/completions", json=body)
                    assert response.json()["choices"]

            await asyncio.gather(*(work() for _ in range(_CONCURRENCY)))

    asyncio.run(run())


def measure(name: str, work: Callable[[], None], count: int) -> Row:
    """Requests a second, and what each takes of a core."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"what": name, "requests_per_second": count / wall, "cpu_ms_per_request": 1e3 * cpu / count}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    count = arguments.images
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = draw(folder, count)
        for turn in range(arguments.turns):
            answers = folder / f"answers{turn}"
            rows.append(measure("presel", lambda to=answers: ours(url, folder, to, wanted), count))
            rows.append(measure("httpx", lambda: bare(url, folder, wanted), count))
    server.kill()
    print(table(rows))
    medians = {
        name: statistics.median(row["requests_per_second"] for row in rows if row["what"] == name)
        for name in ("presel", "httpx")
    }
    print(last_line(generation=medians | {"ratio": medians["presel"] / medians["httpx"]}))


if __name__ == "__main__":
    main()
