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
# Scores n answers, each by one reference or several.
Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], AnswerScores]

_BOX_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
# An A at the beginning of a text, a line or a sentence, before a word in lower case, but not before those
# that follow an option's letter, as in `A is right` and `A because`.
_OF_OPTIONS = "and|as|because|but|fits|is|or|seems|since|was|would"
_ARTICLE = re.compile(rf"(?:^|(?<=[.!?])\s)\s*A(?=[ \t]+[a-z])(?![ \t]+(?:{_OF_OPTIONS})\b)", re.MULTILINE)
# A whole text such as 1,195, -0.5 or 12%.
_NUMBER = re.compile(r"([-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+))\s?(%?)")
# The largest relative error of a number that counts as correct (Masry et al. 2022, section 5.1).
_RELATIVE_ERROR = 0.05
# CIDEr-D as published (Vedantam et al. 2015): n-grams up to 4, length penalty of this width.
_NGRAM_ORDER = 4
_LENGTH_SIGMA = 6.0


def exact_match(answer: str, reference: str) -> bool:
    """Whether the two are equal up to case, white space and a final full stop."""
    return _plain(answer) == _plain(reference)


def number_match(answer: str, reference: str) -> bool:
    """Whether both are the same number, as 1,195 and 1195.0 are; exact match if either is not a number."""
    return _numbers_agree(answer, reference, 0)


def relaxed_accuracy(answer: str, reference: str) -> bool:
    """Whether a number is within 5 % of the reference; exact match if either is not a number.

    The metric of ChartQA (Masry et al. 2022). A percent sign divides by 100, as in lmms-eval and
    Pix2Struct; commas may separate thousands.
    """
    return _numbers_agree(answer, reference, _RELATIVE_ERROR)


def letter_accuracy(answer: str, reference: str) -> bool:
    """Whether both choose the same option: the first capital letter from A to H that stands alone.

    An A that begins a sentence is the article in front of most words in lower case, as in `A white car`.

    Raises:
        ValueError: If the reference chooses none.
    """
    wanted = _letter(reference)
    if wanted is None:
        raise ValueError(f"the reference {reference!r} contains no option letter from A to H")
    return _letter(answer) == wanted


def yes_no_accuracy(answer: str, reference: str) -> bool:
    """Whether both begin with `yes`, or both with `no`.

    Raises:
        ValueError: If the reference begins with neither.
    """
    wanted = _yes_or_no(reference)
    if wanted is None:
        raise ValueError(f"the reference {reference!r} begins with neither yes nor no")
    return _yes_or_no(answer) == wanted


def alphanumeric_match(answer: str, reference: str) -> bool:
    """Whether letters and digits are equal up to case: word accuracy of scene text recognition.

    Raises:
        ValueError: If the reference has neither letter nor digit.
    """
    wanted = _alphanumeric(reference)
    if not wanted:
        raise ValueError(f"the reference {reference!r} has neither letter nor digit")
    return _alphanumeric(answer) == wanted


def box_accuracy(answer: str, reference: str) -> bool:
    """Whether the IoU of the answer's and the reference's box is at least 0.5 (RefCOCO's metric).

    Boxes are the first four numbers of a text, x1, y1, x2, y2; an answer without four numbers is wrong.

    Raises:
        ValueError: If the reference has no box, or one without an area.
    """
    wanted, found = _box(reference), _box(answer)
    if wanted is None:
        raise ValueError(f"the reference {reference!r} contains no box of four numbers")
    if wanted[0] >= wanted[2] or wanted[1] >= wanted[3]:
        raise ValueError(f"the box {reference!r} has no area; write boxes as x1, y1, x2, y2")
    return found is not None and _overlap(found, wanted) >= 0.5


def cider(answers: Sequence[str], references: Sequence[Sequence[str]]) -> AnswerScores:
    """CIDEr-D, divided by 10: 1 for an answer that is equal to all of its references, with two exceptions.

    An n-gram's document frequency is the number of answers with a reference that contains it, and an answer's
    score is the mean over its references, as in the COCO caption evaluation. An n-gram of which every answer
    has a reference weighs nothing, and of the four lengths of n-grams one without any weight counts as 0, as
    published: answers to questions that all share one reference score 0, also where they are equal to it, and
    an answer below four words scores at most a quarter for each of its words.
    """
    wanted = [[_ngrams(reference) for reference in several] for several in references]
    frequency = Counter(gram for several in wanted for gram in set().union(*several))
    log_total = math.log(max(len(wanted), 2))

    def weigh(grams: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        return {gram: n * (log_total - math.log(max(1, frequency[gram]))) for gram, n in grams.items()}

    def similarity(found: Counter[tuple[str, ...]], grams: Counter[tuple[str, ...]]) -> float:
        gap = _n_words(found) - _n_words(grams)
        penalty = math.exp(-(gap**2) / (2 * _LENGTH_SIGMA**2))
        return penalty * _clipped_cosine(weigh(found), weigh(grams))

    scores = []
    for answer, several in zip(answers, wanted, strict=True):
        found = _ngrams(answer)
        scores.append(sum(similarity(found, grams) for grams in several) / len(several))
    return np.array(scores)


def _by_best_reference(is_correct: Callable[[str, str], bool]) -> Metric:
    """The metric by which an answer scores 1 if it is correct by any of its references, else 0."""

    def metric(answers: Sequence[str], references: Sequence[Sequence[str]]) -> AnswerScores:
        pairs = zip(answers, references, strict=True)
        correct = [any([is_correct(answer, one) for one in several]) for answer, several in pairs]
        return np.array(correct, np.float64)

    return metric


METRICS: dict[str, Metric] = {
    "exact_match": _by_best_reference(exact_match),
    "number_match": _by_best_reference(number_match),
    "relaxed_accuracy": _by_best_reference(relaxed_accuracy),
    "letter_accuracy": _by_best_reference(letter_accuracy),
    "yes_no_accuracy": _by_best_reference(yes_no_accuracy),
    "alphanumeric_match": _by_best_reference(alphanumeric_match),
    "box_accuracy": _by_best_reference(box_accuracy),
    "cider": cider,
}


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(". ")


def _numbers_agree(answer: str, reference: str, relative_error: float) -> bool:
    found, wanted = _number(answer), _number(reference)
    if found is None or wanted is None:
        return exact_match(answer, reference)
    # 12.3 / 100 is not 0.123 in floating point.
    return abs(found - wanted) <= max(relative_error, 1e-9) * abs(wanted)


def _number(text: str) -> float | None:
    found = _NUMBER.fullmatch(_plain(text))
    if found is None:
        return None
    number = float(found[1].replace(",", ""))
    return number / 100 if found[2] else number


def _letter(text: str) -> str | None:
    found = re.search(r"\b[A-H]\b", _ARTICLE.sub(" ", text))
    return found[0] if found else None


def _yes_or_no(text: str) -> str | None:
    found = re.match(r"\W*(yes|no)\b", text.lower())
    return found[1] if found else None


def _alphanumeric(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _box(text: str) -> tuple[float, ...] | None:
    numbers = _BOX_NUMBER.findall(text)[:4]
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
