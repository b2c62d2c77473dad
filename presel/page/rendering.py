"""Filling the templates of pages."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from presel.console.escaping import visible


def render(template: str, **values: Any) -> str:
    """Fills a template.

    Args:
        template: Path of the template in this package, such as `report/report.html`.
        values: What it shows. Strings are escaped, control characters too; `markupsafe.Markup` is not.
    """
    return environment().get_template(template).render(**values)


def environment() -> Environment:
    """Templates of this package, with text escaped."""
    return Environment(
        loader=PackageLoader("presel", ""),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    return visible(value) if type(value) is str else value
