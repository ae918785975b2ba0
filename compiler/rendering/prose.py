"""Prose: words, figures and tables as they stand in HTML."""

from __future__ import annotations

import re
from html import escape

#: A hyphen before a figure, where it is a sign and part of no name.
_MINUS = re.compile(r"(?<![\w.)-])-(?=\d)")


def prose(text: str) -> str:
    """Escape ``text``, and set its minus signs as such."""
    return escape(_MINUS.sub("−", text))


def boxed(label: str, table: str, kind: str = "box") -> str:
    """Put a table into a box that scrolls by itself, with the keyboard too, so that the page never does sideways."""
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'
