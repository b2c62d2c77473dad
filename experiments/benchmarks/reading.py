"""Time and memory to read an annotation file of LLaVA-665K's shape.

Command: `python experiments/benchmarks/reading.py`. Writes 665,298 records worded as the mixture words them,
as many of each task, 0.9 GB; then reads them in a process of its own, counts the tasks and takes the peak
memory. Ends in one line of JSON. `--shrink 100` divides all numbers, to try it out.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import Row, last_line, table

from presel.data.llava import LlavaFiles
from presel.data.llava665k import EXPECTED, Llava665kTasks

_TEXT_ONLY = 40688
_SHORT = "\nAnswer the question using a single word or phrase."
_WORDS = "the quick brown fox jumps over the lazy dog and looks at the camera while it rains "
# Image folder, first question, questions in all, characters of an answer.
_WORDED = {
    "vqav2": ("coco/train2017", f"Is it on?{_SHORT}", 6, 4),
    "ok_vqa": ("coco/train2017", f"What sport is it?{_SHORT}", 1, 8),
    "a_okvqa": (
        "coco/train2017",
        "A. on\nAnswer with the option's letter from the given choices directly.",
        1,
        1,
    ),
    "refcoco": ("coco/train2017", "Please provide a short description for this region: [0.1, 0.2].", 10, 20),
    "conversation": ("coco/train2017", "What is the cat doing?", 4, 300),
    "detail": ("coco/train2017", "Write a detailed description of the given image.", 1, 600),
    "reasoning": ("coco/train2017", "Why might the cat be outside?", 1, 800),
    "gqa": ("gqa/images", f"Is it on?{_SHORT}", 12, 4),
    "ocr_vqa": ("ocr_vqa/images", f"Who wrote it?{_SHORT}", 5, 15),
    "textcaps": ("textvqa/train_images", "Provide a one-sentence caption for the image.", 1, 60),
    "vg": ("vg/VG_100K", "Please provide a short description for this region: [0.1, 0.2].", 10, 30),
}


def records(shrink: int) -> Iterator[dict[str, Any]]:
    """The mixture's records, task by task, and those without an image."""
    for task, count in EXPECTED.items():
        folder, question, questions, length = _WORDED[task]
        for number in range(count // shrink):
            yield {"id": "000000000009", "image": f"{folder}/{number:012}.jpg"} | _said(
                question, questions, length
            )
    for _ in range(_TEXT_ONLY // shrink):
        yield {"id": "text"} | _said("Write a poem.", 4, 1200)


def _said(question: str, questions: int, length: int) -> dict[str, Any]:
    answer = (_WORDS * (length // len(_WORDS) + 1))[:length]
    turns = []
    for place in range(questions):
        value = question if place else f"<image>\n{question}"
        turns += [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]
    return {"conversations": turns}


def read(file: Path) -> Row:
    """Reads the file, and says how long it took and what is in it."""
    started = time.perf_counter()
    contents = LlavaFiles(file, file.parent, Llava665kTasks(), numbered=True, text_only="drop_all").contents()
    seconds = time.perf_counter() - started
    return {
        "records": len(contents.records),
        "text_only": contents.text_only,
        "seconds": seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "tasks": dict(Counter(record.task for record in contents.records)),
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shrink", type=int, default=1)
    shrink = parser.parse_args().shrink
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mix.json"
        with file.open("w") as stream:
            for place, record in enumerate(records(shrink)):
                stream.write(("[" if not place else ",") + json.dumps(record))
            stream.write("]")
        size = file.stat().st_size / 1e9
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(read, (file,)) | {"file_gb": size}
    print(table([{name: value for name, value in row.items() if name != "tasks"}]))
    print(last_line(reading=row))


if __name__ == "__main__":
    main()
