"""`presel assemble`: puts a LLaVA together from its parts."""

from collections.abc import Sequence
from pathlib import Path

from presel.console import ArgumentParser, console
from presel.models.assembly import assemble


def main(arguments: Sequence[str]) -> int:
    """Runs `presel assemble`, see `presel.models.assembly.assemble`."""
    parser = ArgumentParser(
        prog="presel assemble",
        description="Put a LLaVA together from a language model, a CLIP tower and LLaVA's projector.",
    )
    parser.add_argument("--language", required=True, help="folder or hub name of the language model (Vicuna)")
    parser.add_argument(
        "--vision", required=True, help="folder or hub name of CLIP (clip-vit-large-patch14-336)"
    )
    parser.add_argument("--projector", required=True, type=Path, help="LLaVA's mm_projector.bin")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--out", required=True, type=Path, help="folder for the model, which must not exist")
    options = parser.parse_args(arguments)
    assemble(options.language, options.vision, options.projector, options.out, options.dtype)
    console.print(f"model  {options.out}")
    return 0
