"""Prevents text of a pool from being read as special tokens: `</s>` must be four plain characters there."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from presel.data.prompts import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# SentencePiece's notation of single bytes; some tokenizers list these pieces as special.
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """The special tokens of a tokenizer, as text."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return {token for token in added.union(tokenizer.all_special_tokens) if not _BYTE.fullmatch(token)}


def with_secret_markers(
    tokenizer: "PreTrainedTokenizerBase", markers: set[str]
) -> tuple[Tokenizer, dict[str, str]]:
    """Copies a tokenizer and renames its special tokens, so that no text can contain one.

    Text is tokenized exactly as before, since only the names differ. Tokenizing the pieces between two
    markers separately instead would change the tokens at their borders.

    Returns:
        The copy, and the random new name of each marker. Token ids do not change.
    """
    secret = secrets.token_hex(4)
    names = {marker: f"<{secret}-{number}>" for number, marker in enumerate(sorted(markers))}
    described = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    for token in described["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = described["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:  # a Unigram model's: pieces and their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return Tokenizer.from_str(json.dumps(described)), names


def with_names(template: Template, names: Mapping[str, str]) -> Template:
    """Replaces the markers in a template by their new names."""
    return Template(**{field: replaced(text, names) for field, text in asdict(template).items()})


def replaced(text: str, names: Mapping[str, str]) -> str:
    """Replaces all keys of `names` in a text by their values, where several fit the longest."""
    return _pattern(tuple(names)).sub(lambda found: names[found[0]], text)


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))))
