"""What a class from outside this package is made of: its module, and those beside it that this imports."""

import ast
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import resolve_name
from itertools import accumulate
from pathlib import Path

from presel.storage.files import sha256

# Packages whose text is not part of a key: `version` stands for it.
_VERSIONED = {"presel", *sys.stdlib_module_names}
_INSTALLED = {"site-packages", "dist-packages"}


def is_versioned(module: str) -> bool:
    """Whether a module's text is not part of a key."""
    return module.partition(".")[0] in _VERSIONED


def module_digests(name: str, file: Path) -> dict[str, str]:
    """Digests of a module, and of what it imports, directly or not, from the folder that it is imported from.

    Imports are read from the text, wherever they stand in it, so that digests do not depend on what a process
    has loaded so far. Of an installed module nothing is followed.

    Args:
        name: The module's full name.
        file: Its file.

    Returns:
        Name of each module to the SHA-256 of its file.
    """
    file = file.resolve()
    depth = name.count(".") + 1 + (file.name == "__init__.py")
    root = file.joinpath(*[".."] * depth).resolve()
    follows = not _INSTALLED & set(file.parts)
    found: dict[str, str] = {}
    waiting = [(name, file)]
    while waiting:
        name, file = waiting.pop()
        if name in found:
            continue
        found[name] = sha256(file)
        if follows and file.suffix == ".py":
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            imports = (one for one in _imports(file.read_bytes(), package) if not is_versioned(one))
            waiting += [(one, path) for one in imports for path in _files(root, one)]
    return found


def _files(root: Path, name: str) -> list[Path]:
    folder = root.joinpath(*name.split("."))
    return [path for path in (folder / "__init__.py", folder.with_suffix(".py")) if path.is_file()][:1]


@cache
def _imports(text: bytes, package: str) -> frozenset[str]:
    """Full names of all that a text of a package may import, and of the packages that hold it."""
    with suppress(SyntaxError):
        return frozenset(
            part
            for node in ast.walk(ast.parse(text))
            for name in _named(node, package)
            for part in accumulate(name.split("."), "{}.{}".format)
        )
    return frozenset()


def _named(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (one.name for one in node.names)
    elif isinstance(node, ast.ImportFrom):
        with suppress(ImportError):  # a relative import that leads out of all packages
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{source}.{one.name}" for one in node.names)
