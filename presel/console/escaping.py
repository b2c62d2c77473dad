"""Escaping of untrusted text for terminals, spreadsheets and Markdown."""

import csv
import html
import re
from typing import TYPE_CHECKING, Any
from unicodedata import category

if TYPE_CHECKING:
    import pandas as pd

# Unicode categories: control characters, format characters such as those that change the direction of text,
# lone surrogates, line and paragraph separators.
_NOT_SHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# First characters of a formula (OWASP, CSV injection); tabs and line breaks are escaped before.
_FORMULA = tuple("=+-@＝＋－＠")
# Characters of code, links and the end of a table cell.
_MARKDOWN = re.compile(r"[\\`|]|(?<=])\(")


def visible(text: str) -> str:
    r"""Escapes control characters, as `\x1b` or `\u202e`; the result is one line."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if category(character) in _NOT_SHOWN else character
        for character in text
    )


def csv_text(table: "pd.DataFrame") -> str:
    """Writes a table as CSV without formulas, which a spreadsheet would run when it opens the file.

    Text that looks like a formula gets a leading apostrophe. All text is quoted, since a spreadsheet may
    expect another delimiter than the comma.
    """
    return table.rename(columns=_cell).map(_cell).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def markdown_text(text: str) -> str:
    """Escapes HTML, code, links and the end of a table cell."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(visible(text), quote=False))
