"""The fenced blocks of a Markdown file."""

import re
from pathlib import Path


def blocks(document: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block, in order."""
    return re.findall(
        r"^```(\w*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
