"""Tables in Markdown, and where they go."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["replace_between", "table"]


def replace_between(text: str, markers: tuple[str, str], new: str) -> str:
    """``text`` with ``new`` between its markers; unchanged where it has none.

    >>> replace_between("a <x> old <y> b", ("<x>", "<y>"), "new").split()
    ['a', '<x>', 'new', '<y>', 'b']
    """
    begin, end = (text.find(marker) for marker in markers)
    if begin < 0 or end < begin:
        return text
    return f"{text[: begin + len(markers[0])]}\n{new}\n{text[end:]}"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; empty cells hold a dash."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cell or "–" for cell in line) + " |" for line in (heads, rule, *lines))
