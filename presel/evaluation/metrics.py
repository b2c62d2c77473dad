"""Benchmark metrics: from answers and references to one score per answer, 0 to 1.

CIDEr-D is written out here because pycocoevalcap needs Java for its tokenizer.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

# One score per answer, (n,).
AnswerScores = NDArray[np.float64]

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# CIDEr-D as published (Vedantam et al. 2015): n-grams up to 4, length penalty of this width.
_NGRAM_ORDER = 4
_LENGTH_SIGMA = 6.0


def exact_match(answers: Sequence[str], references: Sequence[str]) -> AnswerScores:
    """1 if answer and reference are equal up to case, white space and a final full stop, else 0."""
    pairs = zip(answers, references, strict=True)
    return np.array([float(_plain(answer) == _plain(reference)) for answer, reference in pairs])


def box_accuracy(answers: Sequence[str], references: Sequence[str]) -> AnswerScores:
    """1 if the IoU of the answer's and the reference's box is at least 0.5, else 0 (RefCOCO's metric).

    Boxes are the first four numbers of a text, x1, y1, x2, y2; an answer without four numbers scores 0.

    Raises:
        ValueError: If a reference has no box.
    """
    scores = []
    for answer, reference in zip(answers, references, strict=True):
        wanted, found = _box(reference), _box(answer)
        if wanted is None:
            raise ValueError(f"the reference {reference!r} contains no box of four numbers")
        scores.append(float(found is not None and _overlap(found, wanted) >= 0.5))
    return np.array(scores)


def cider(answers: Sequence[str], references: Sequence[str]) -> AnswerScores:
    """CIDEr-D with one reference each, divided by 10: 1 for an exact answer of four words or more.

    Document frequencies are those of the references, as in the COCO caption evaluation.
    """
    wanted = [_ngrams(reference) for reference in references]
    frequency = Counter(gram for grams in wanted for gram in grams)
    log_total = math.log(max(len(wanted), 2))

    def weigh(grams: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        return {gram: n * (log_total - math.log(max(1, frequency[gram]))) for gram, n in grams.items()}

    scores = []
    for answer, grams in zip(answers, wanted, strict=True):
        found = _ngrams(answer)
        gap = _n_words(found) - _n_words(grams)
        penalty = math.exp(-(gap**2) / (2 * _LENGTH_SIGMA**2))
        scores.append(penalty * _clipped_cosine(weigh(found), weigh(grams)))
    return np.array(scores)


METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], AnswerScores]] = {
    "exact_match": exact_match,
    "box_accuracy": box_accuracy,
    "cider": cider,
}


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _box(text: str) -> tuple[float, ...] | None:
    numbers = _NUMBER.findall(text)[:4]
    return tuple(float(number) for number in numbers) if len(numbers) == 4 else None


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def _ngrams(text: str) -> Counter[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, _NGRAM_ORDER + 1)
        for start in range(len(words) - order + 1)
    )


def _n_words(grams: Counter[tuple[str, ...]]) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 1)


def _clipped_cosine(found: dict[tuple[str, ...], float], wanted: dict[tuple[str, ...], float]) -> float:
    total = 0.0
    for order in range(1, _NGRAM_ORDER + 1):
        ours = {gram: weight for gram, weight in found.items() if len(gram) == order}
        theirs = {gram: weight for gram, weight in wanted.items() if len(gram) == order}
        shared = sum(min(ours[gram], theirs[gram]) * theirs[gram] for gram in ours if gram in theirs)
        norm = math.hypot(*ours.values()) * math.hypot(*theirs.values())
        total += shared / norm if norm > 0 else 0.0
    return total / _NGRAM_ORDER
