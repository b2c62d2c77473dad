"""Names and messages from outside, made harmless for what shows them to people."""

import csv
import html
import re
from typing import TYPE_CHECKING, Any
from unicodedata import category

if TYPE_CHECKING:
    import pandas as pd

# Control characters, those that change the direction of text and the like, lone surrogates, and separators of
# lines and paragraphs.
_NOT_SHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# What spreadsheets take for a formula (OWASP, CSV injection); tabs and line breaks are written out before.
_FORMULA = tuple("=+-@＝＋－＠")
# What is code, a link or the end of a cell in Markdown.
_MARKDOWN = re.compile(r"[\\`|]|(?<=])\(")


def visible(text: str) -> str:
    r"""Writes out every character that a terminal obeys instead of showing it, as in `\x1b` or `\u202e`.

    Line breaks are among them, so the result is one line. All other text stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if category(character) in _NOT_SHOWN else character
        for character in text
    )


def csv_text(table: "pd.DataFrame") -> str:
    """Writes a table as CSV that a spreadsheet can open without running what a name holds.

    Text that reads as a formula begins with an apostrophe. All text is quoted, since a spreadsheet may take
    another delimiter than the comma.
    """
    return table.rename(columns=_cell).map(_cell).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def markdown_text(text: str) -> str:
    """Escapes what Markdown would take for HTML, code, a link or the end of a cell."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(visible(text), quote=False))
