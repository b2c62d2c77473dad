"""Campaign: bad annotation files, manifests, shards, images, settings and configurations, made at random."""

import csv
import gzip
import io
import json
import os
import random
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from presel.models.model_files import locate
from tests.campaigns.program import presel
from tests.generation_server import conversation
from tests.pictures import two_kinds
from tests.test_label_studio import export
from tests.test_openai_batch import completed, requests

_DEADLINE_S = 120
_MOST_MB = 700
_ODD: list[Any] = [
    None, True, 7, -1, 10**400, float("nan"), float("inf"), [], {}, [[]], {"a": {}}, "", " ", "\n", "nan",
    "\x1b]0;owned\x07\x1b[2J", "\x00", "\ud800", "a" * 100_000, "ä/é.png", "../../etc/passwd", "/etc/passwd",
    "~/a.png", "C:\\a.png", "file:///etc/passwd", "https://example.org/a.png", "data:image/png;base64,AAAA",
    "<image>", "<image><image>", "</s>", "[bold][/nope]", "$\\frac{$", "=cmd|'/C calc'!A0", "<script>",
]  # fmt: skip


class Kind(NamedTuple):
    """A kind of bad input.

    Attributes:
        make: Makes one in a folder that has images; returns the arguments of the command that meets it.
        commands: Commands to draw from; none where the arguments begin with it.
        codes: The exit codes that are right.
    """

    make: Callable[[Path, random.Random], list[str]]
    commands: tuple[str, ...] = ("doctor", "run")
    codes: tuple[int, ...] = (0, 2)


class Input(NamedTuple):
    """What one bad input did.

    Attributes:
        kind: What was bad about it.
        command: The command that met it.
        code: What the run ended with.
        said: The error sentence, if there was one.
        faults: What went wrong, in words.
    """

    kind: str
    command: str
    code: int
    said: str
    faults: list[str]


def bad_input(number: int, seed: int, out: Path) -> Input:
    """Makes something bad, and has the program read it.

    Args:
        number: Number of the trial; trials go through the kinds in turn.
        seed: Decides the rest.
        out: Where the trial's files go; deleted if all is well.
    """
    draw = random.Random(f"{seed} {number}")
    name = list(KINDS)[number % len(KINDS)]
    kind = KINDS[name]
    folder = out / f"input-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    two_kinds(folder / "images", 12)
    arguments = kind.make(folder, draw)
    codes = kind.codes
    if kind.commands:
        arguments = _completed(draw.choice(kind.commands), arguments)
        # The doctor's word for what is wrong with a pool.
        codes = (*codes, 1) if arguments[0] == "doctor" else codes
    ended = presel(folder, *arguments, deadline_s=_DEADLINE_S)
    faults = ended.faults(*codes)
    if ended.peak_mb > _MOST_MB:
        faults.append(f"{ended.peak_mb:.0f} MB")
    if (out / "escaped").exists() or (folder / "ran").exists():
        faults.append("code was run, or a file written outside the pool's folder")
    if not faults:
        shutil.rmtree(folder)
    said = " ".join(ended.errors())[:300]
    return Input(name, f"presel {' '.join(arguments)}"[:200], ended.code, said, faults)


def _completed(command: str, arguments: list[str]) -> list[str]:
    """A whole command, with the settings that are not what is tried."""
    settings = ["budget=4", "strategy=random", "executor.workers=0"]
    settings += ["until=selection"] if command == "run" else []
    given = " ".join(arguments)
    return [command, *arguments, *(one for one in settings if one.split("=")[0] not in given)]


def _records(folder: Path) -> list[dict[str, Any]]:
    images = sorted(str(file.relative_to(folder / "images")) for file in folder.glob("images/*/*.png"))
    return [
        {
            "id": f"{number:03}",
            "image": image,
            "task": image.split("/")[0],
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"},
                {"from": "gpt", "value": "An animal."},
            ],
        }
        for number, image in enumerate(images)
    ]


def _llava(folder: Path, content: bytes, name: str = "pool.json") -> list[str]:
    (folder / name).write_bytes(content)
    return ["pool=llava_json", f"pool.annotations={name}", "pool.images=images", "pool.task_field=task"]


def _json(records: Any) -> bytes:
    return json.dumps(records).encode()


def _scrambled(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, some left out, or the end cut off."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 12)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    if draw.random() < 0.5:
        at = draw.randrange(len(changed))
        del changed[at : at + draw.randint(1, len(changed))]
    return bytes(changed)


def _json_bytes(folder: Path, draw: random.Random) -> list[str]:
    return _llava(folder, _scrambled(_json(_records(folder)), draw))


def _json_value(folder: Path, draw: random.Random) -> list[str]:
    """One value of one record is something else, or gone."""
    records = _records(folder)
    record = draw.choice(records)
    at, key = draw.choice(
        [(record, key) for key in record]
        + [(turn, key) for turn in record["conversations"] for key in turn]
        + [(record["conversations"], 0)]
    )
    if draw.random() < 0.2:
        del at[key]
    else:
        at[key] = draw.choice(_ODD)
    return _llava(folder, _json(records))


def _json_form(folder: Path, draw: random.Random) -> list[str]:
    records = _records(folder)
    whole = _json(records)
    lines = b"\n".join(map(_json, records))
    name, content = draw.choice(
        [
            ("pool.jsonl", whole), ("pool.json", lines), ("pool.jsonl", lines[:-5]), ("pool.json", b""),
            ("pool.json", whole + whole), ("pool.json", whole.replace(b"},", b"},,")), ("pool.json", b"[]"),
            ("pool.json", b"[" * 100_000), ("pool.json", b'{"a":' * 100_000), ("pool.json", b"null"),
            ("pool.json", whole.decode().encode("utf-16")), ("pool.json", gzip.compress(whole)),
            ("pool.json.gz", gzip.compress(whole)), ("pool.json", b"\xef\xbb\xbf" + whole),
            ("pool.json", bytes(1000)), ("pool.json", _json({"data": records})), ("pool.json",
            _json([records])),
            ("pool.json", _json(records + records)), ("pool.json", whole.replace(b"}", b"}\x1b[31m", 1)),
            ("pool.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
        ]
    )  # fmt: skip
    return _llava(folder, content, name)


def _odd_file(folder: Path, draw: random.Random) -> list[str]:
    """A file that is none, where one is to be read."""
    file = folder / "pool.json"
    kind = draw.choice(["fifo", "folder", "device", "missing", "loop", "socket name"])
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "loop":
        file.symlink_to(file)
    key = draw.choice(["pool=llava_json pool.annotations", "pool=manifest pool.manifest"])
    group, path = key.split()
    return [group, f"{path}=pool.json", "pool.images=images"]


def _csv(folder: Path, draw: random.Random) -> list[str]:
    rows = [{"image": record["image"], "task": record["task"]} for record in _records(folder)]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["image", "task"])
    writer.writeheader()
    if draw.random() < 0.6:
        odd = str(draw.choice(_ODD)).encode("utf-8", "replace").decode()
        draw.choice(rows)[draw.choice(["image", "task"])] = odd
    writer.writerows(rows)
    content = stream.getvalue().encode()
    form = draw.randrange(6)
    if form == 0:
        content = _scrambled(content, draw)
    elif form == 1:
        content = content.replace(b",", draw.choice([b";", b"\t", b"|", b",,"]))
    elif form == 2:
        content = content.replace(b"\n", b'"\n', 1)
    elif form == 3:
        content = content.decode().encode(draw.choice(["utf-16", "utf-8-sig", "utf-32"]))
    (folder / "pool.csv").write_bytes(content)
    return ["pool=manifest", "pool.manifest=pool.csv", "pool.images=images"]


def _parquet(folder: Path, draw: random.Random) -> list[str]:
    table = pd.DataFrame([{"image": one["image"], "task": one["task"]} for one in _records(folder)])
    odd = draw.choice([None, 7, 1.5, b"\xff", True, [1], {"a": 1}, pd.Timestamp("2026-01-01")])
    column = draw.choice(["image", "task"])
    if draw.random() < 0.5:
        table[column] = [odd] * len(table)
    table.to_parquet(folder / "pool.parquet", index=draw.random() < 0.5)
    if draw.random() < 0.5:
        content = (folder / "pool.parquet").read_bytes()
        (folder / "pool.parquet").write_bytes(_scrambled(content, draw))
    return ["pool=manifest", "pool.manifest=pool.parquet", "pool.images=images"]


def _image_bytes(folder: Path, draw: random.Random) -> list[str]:
    for file in draw.sample(sorted(folder.glob("images/*/*.png")), 3):
        file.write_bytes(_scrambled(file.read_bytes(), draw))
    return ["pool=image_folder", "pool.images=images"]


def _png(width: int, height: int, depth: int = 8, color: int = 2, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that claims a size, and whose data is zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    data = zlib.compress(bytes(min(1 << 27, (1 + width * channels * depth // 8) * height)), 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    inside = b"".join(chunk(*one) for one in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + inside + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _changed(value: Any, draw: random.Random) -> Any:
    """JSON of which one value, at any depth, is something else or gone."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            visit(node[key])

    visit(value)
    node, key = draw.choice(places)
    if draw.random() < 0.2:
        del node[key]
    else:
        node[key] = draw.choice(_ODD)
    return value


def _spoiled(file: Path, draw: random.Random) -> None:
    """Changes bytes of a file, or a value if it is JSON."""
    if file.suffix == ".json" and draw.random() < 0.7:
        file.write_bytes(_json(_changed(json.loads(file.read_bytes()), draw)))
    elif file.stat().st_size:
        file.write_bytes(_scrambled(file.read_bytes(), draw))


def _paused(folder: Path, provider: str, *settings: str) -> tuple[list[str], Path]:
    """A run that waits for instructions: its arguments, and the folder in which it awaits them."""
    arguments = _completed("run", ["pool=image_folder", "pool.images=images", f"instructions={provider}"])
    arguments += ["until=instructions", "instructions.max_unanswered_share=0.5", *settings]
    arguments.remove("until=selection")
    assert presel(folder, *arguments).code == 3
    (order,) = (folder / "outputs/answers" / provider).glob("*/job.json")
    return arguments, order.parent


def _batch(folder: Path, draw: random.Random) -> list[str]:
    arguments, order = _paused(folder, "openai_batch", "instructions.model=seer")
    asked = requests(order)
    lines = [json.dumps(completed(request, conversation("it"))) for request in asked]
    form = draw.randrange(6)
    if form == 0:
        lines = [json.dumps(request) for request in asked]
    elif form == 1:
        lines = [json.dumps(lines)]
    elif form == 2:
        lines += lines
    else:
        at = draw.randrange(len(lines))
        lines[at] = json.dumps(_changed(json.loads(lines[at]), draw))
    content = "\n".join(lines).encode()
    (order / "answers" / draw.choice(["out.jsonl"] * 9 + ["out.json"])).write_bytes(
        _scrambled(content, draw) if form == 5 else content
    )
    return arguments


def _label_studio(folder: Path, draw: random.Random) -> list[str]:
    arguments, order = _paused(folder, "label_studio")
    export(order)
    _spoiled(order / "export.json", draw)
    return arguments


def _model(folder: Path, draw: random.Random) -> list[str]:
    shutil.copytree(locate("builtin:digit_dinov2"), folder / "model")
    _spoiled(draw.choice(sorted(folder.glob("model/*.[js]*"))), draw)
    own = ["pool=image_folder", "pool.images=images", "strategy=typiclust", "strategy.min_cluster_size=2"]
    return [*own, "encoder.path=model", "trainer=cpu"]


def _finished_run(folder: Path, draw: random.Random) -> list[str]:
    """A run of which one file, of its folder or of the store, is not as it was."""
    arguments = _completed("run", _llava(folder, _json(_records(folder))))
    arguments[arguments.index("until=selection")] = "until=instructions"
    assert presel(folder, *arguments).code == 0
    (told,) = folder.glob("outputs/runs/*/*/run.json")
    stored = [file for file in folder.glob("outputs/store/*/*/*") if file.is_file()]
    _spoiled(draw.choice([told, draw.choice(sorted(told.parent.glob(".hydra/*"))), *sorted(stored)]), draw)
    run = str(told.parent.relative_to(folder))
    formats = ["llava", "llama_factory"]
    copied = ["export", run, "--format", draw.choice(formats), "--out", "exported", "--images", "copy"]
    return draw.choice([copied, ["diff", run, run], arguments])


_CONTENTS: list[bytes | Callable[[], bytes]] = [
    b"", b"\n", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9", b"RIFF\0\0\0\0WEBP", b"BM" + bytes(60),
    b"II*\0\x08\0\0\0\xff\xff", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n", b"%!PS\n",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", gzip.compress(b"picture"),
    bytes(4) + b"ftypheic" + bytes(20), b"Content-Type: text/html\r\n\r\n<html>",
    lambda: _png(60000, 60000), lambda: _png(8900, 8900, 16, 6), lambda: _png(0, 0), lambda: _png(1, 100_000),
    lambda: _png(20, 20, 16, 0), lambda: _png(20, 20, 8, 3), lambda: _png(20, 20, 8, 2, (b"zTXt", _bomb())),
    lambda: _png(20, 20, 8, 2, (b"iCCP", _bomb())),
]  # fmt: skip


def _bomb() -> bytes:
    """A text chunk that becomes a quarter of a gigabyte."""
    return b"a\0\0" + zlib.compress(bytes(1 << 28), 9)


def _image_form(folder: Path, draw: random.Random) -> list[str]:
    """Files that are called pictures: bombs, other formats, nothing, names that a terminal would obey."""
    content = draw.choice(_CONTENTS)
    if callable(content):
        content = content()
    name = draw.choice(["odd.png", "odd.jpg", "\x1b[31m.png", "a\nb.png", "[bold].png", "=1+1.png", "ä.PNG"])
    (folder / "images/cats" / name).write_bytes(content)
    return ["pool=image_folder", "pool.images=images"]


def _image_entries(folder: Path, draw: random.Random) -> list[str]:
    """Entries of the image folder that are no files of it."""
    entry = folder / "images/cats" / draw.choice(["odd.png", "\x1b]0;owned\x07.png"])
    kind = draw.choice(["fifo", "out", "loop", "folder", "bytes", "deep", "hidden", "system"])
    if kind == "fifo":
        os.mkfifo(entry)
    elif kind == "out":
        entry.symlink_to("/etc/passwd")
    elif kind == "loop":
        entry.symlink_to(entry.parent)
    elif kind == "folder":
        entry.mkdir()
    elif kind == "bytes":
        Path(os.fsdecode(os.fsencode(entry.parent) + b"/\xff\xfe.png")).write_bytes(_png(20, 20))
    elif kind == "deep":
        deep = entry.parent.joinpath(*["d"] * 200)
        deep.mkdir(parents=True)
        (deep / "a.png").write_bytes(_png(20, 20))
    else:
        name = "@eaDir" if kind == "system" else ".hidden"
        (folder / "images" / name).mkdir()
        (folder / "images" / name / "a.png").write_bytes(_png(20, 20))
    return ["pool=image_folder", "pool.images=images"]


def _tar(folder: Path, draw: random.Random) -> list[str]:
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for number, file in enumerate(sorted(folder.glob("images/*/*.png"))):
            shard.add(file, f"{number:03}.png")
            told = tarfile.TarInfo(f"{number:03}.cls")
            told.size = 1
            shard.addfile(told, io.BytesIO(b"1"))
        odd = tarfile.TarInfo(
            draw.choice(["../../escaped", "/escaped", "a.b.png", "\x1b[31m.png", "n/" * 300 + "a.png"])
        )
        odd.type = draw.choice(
            [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
        )
        odd.linkname = draw.choice(["/etc/passwd", "000.png", "../../escaped"])
        shard.addfile(odd)
    content = (folder / "shard.tar").read_bytes()
    form = draw.randrange(6)
    if form == 0:
        content = _scrambled(content, draw)
    elif form == 1:
        content = content[: draw.randrange(len(content))]
    elif form == 2:
        content += content
    elif form == 3:
        content = gzip.compress(content)
    elif form == 4:
        # The first member claims a terabyte.
        content = content[:124] + b"\x80" + (1 << 40).to_bytes(11, "big") + content[136:]
    (folder / "shard.tar").write_bytes(content)
    return ["pool=webdataset", "pool.shards=shard.tar"]


def _setting(folder: Path, draw: random.Random) -> list[str]:
    """An override that says nothing, or nonsense."""
    key = draw.choice(
        ["budget", "seed", "tau.value", "pool.size", "pool", "strategy", "tune.lr", "nothing", "paths.store"]
    )
    value = draw.choice(
        [
            "", "null", "nan", "-1", "1e400", "0x10", "0,15", "15%", "[1,2]", "{a: 1}", "${oc.env:HOME}",
            "${seed}",
            "${budget}", "???", "~/a", "a=b", "it's",
            '"', "(", "büro", "\x1b[31m", "1_000", "true", "_target_",
            "" .join(draw.choice("[]{}()=,:$~'\"\\ @+!") for _ in range(6)),
        ]
    )  # fmt: skip
    prefix = draw.choice(["", "", "", "+", "++", "~", "-"])
    return ["pool=image_folder", "pool.images=images", f"{prefix}{key}={value}"]


def _config(folder: Path, draw: random.Random) -> list[str]:
    """A configuration of one's own that is no configuration, or names what it must not."""
    content = draw.choice(
        [
            "_target_: os.system\ncommand: mkdir ran\n", "_target_: os.mkdir\npath: ran\n", "a: b: c\n",
            "\t- a\n",
            "_target_: pathlib.Path.mkdir\nself: ran\n",
            "_target_: presel.storage.files.write_json\npath: ran\nvalue: 1\n",
            "!!python/object/apply:os.system ['mkdir ran']\n", "_target_: nowhere.Nothing\n", "_target_: 7\n",
            "_target_: presel.strategies.random.Nothing\n",
            "_target_: presel.models.encoder.Encoder\npath: a\n",
            "_target_: presel.strategies.random.Random\nno_such: 1\n", "[]\n", "7\n", "a: &a [*a]\n", "",
            "defaults: [nowhere]\n", "_target_: \"\\e[31m\"\n", "a: \x1b[31m\n", "\xff", "_partial_: true\n",
            "_target_: pandas.read_pickle\nfilepath_or_buffer: ran\n",
            "_target_: builtins.eval\n_args_: ['1']\n",
        ]
    )  # fmt: skip
    (folder / "own/strategy").mkdir(parents=True)
    (folder / "own/strategy/odd.yaml").write_bytes(content.encode("latin-1"))
    return ["--config-dir", "own", "pool=image_folder", "pool.images=images", "strategy=odd"]


KINDS = {
    "JSON, bytes": Kind(_json_bytes),
    "JSON, a value": Kind(_json_value),
    "JSON, its form": Kind(_json_form),
    "no regular file": Kind(_odd_file),
    "CSV": Kind(_csv),
    "parquet": Kind(_parquet),
    "images, bytes": Kind(_image_bytes),
    "images, other content": Kind(_image_form),
    "images, entries of the folder": Kind(_image_entries),
    "tar": Kind(_tar),
    "a setting": Kind(_setting),
    "a configuration": Kind(_config),
    "answers of a batch": Kind(_batch, (), (0, 2, 3)),
    "an export of Label Studio": Kind(_label_studio, (), (0, 2, 3)),
    "a model": Kind(_model, ("run",)),
    "a finished run": Kind(_finished_run, ()),
}
