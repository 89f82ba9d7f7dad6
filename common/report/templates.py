"""The templates of the page and its charts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    import jinja2

HERE = Path(__file__).parent


@cache
def style() -> Markup:
    """The style sheet of every page."""
    return Markup((HERE / "style.css").read_text())


@cache
def template(name: str) -> jinja2.Template:
    """The template in a file of this folder; what is put in is escaped."""
    import jinja2  # runs that write no page do without it

    loader, strict = jinja2.FileSystemLoader(HERE), jinja2.StrictUndefined
    folder = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=strict)
    return folder.get_template(name)
