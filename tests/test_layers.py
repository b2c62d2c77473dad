"""Which package may import which: no cycles, and selection runs without deep-learning libraries."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import presel

ROOT = Path(presel.__file__).parent

# A package, or a module beside them, may import only what stands above it.
LAYERS = (
    "errors",
    "component",
    "console",
    "selection",
    "importance",
    "strategies",
    "storage",
    "data",
    "page",
    "evaluation",
    "models",
    "instructions",
    "distributed",
    "stages",
    "pipeline",
    "settings",
    "runs",
    "pool_map",
    "export",
    "report",
    "doctor",
    "commands",
    "api",
    "cli",
    "__main__",
)
# Libraries that only these may import; `instructions` looks for API keys in Hydra's overrides.
ONLY_IN = {
    "hydra": {"instructions", "settings", "commands", "api"},
    "omegaconf": {"runs", "settings", "commands", "api"},
    "torch": {"models", "instructions", "distributed"},
    "transformers": {"models"},
    "peft": {"models"},
    "pytorch_lightning": {"models"},
    "ray": {"distributed"},
}


def imports(node: ast.AST) -> Iterator[str]:
    """Full names of all modules that are imported, inside functions too, but not for type checking only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (name.name for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "imports are absolute"
            yield from (f"{child.module}.{name.name}" for name in child.names)
        else:
            yield from imports(child)


def imported() -> dict[str, set[str]]:
    """Names of the modules that each package imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in ROOT.rglob("*.py"):
        if file != ROOT / "__init__.py":
            package = file.relative_to(ROOT).parts[0].removesuffix(".py")
            found[package] |= set(imports(ast.parse(file.read_text())))
    return found


def test_a_package_imports_only_what_lies_below_it() -> None:
    packages = imported()
    assert set(packages) <= set(LAYERS), "give a new package its place in LAYERS"
    for package, modules in packages.items():
        below = LAYERS[: LAYERS.index(package) + 1]
        own = {module.split(".")[1] for module in modules if module.startswith("presel.")}
        assert not own & set(LAYERS) - set(below), f"{package} imports from a layer above it"


def test_libraries_are_imported_only_where_they_belong() -> None:
    for package, modules in imported().items():
        for library in {module.split(".")[0] for module in modules} & ONLY_IN.keys():
            assert package in ONLY_IN[library], f"{package} imports {library}"
