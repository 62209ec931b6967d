"""Words that a person typed: the nearest one that there is, and help texts that fit a terminal. Stdlib only."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterable

WIDTH = 80  # columns of every help text


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"`, or nothing if no known word is near. The last part of one counts: `--port` is near
    `--axon.port`, `DT_HOTKEY` near `DT_WALLET_HOTKEY`."""
    words, bare = sorted(known, key=len), re.sub(r"^(--|DT_)", "", word)
    ends = [other for other in words if bare and re.search(rf"(?i)(?:--|[._]){re.escape(bare)}$", other)]
    match = ends[:1] or difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else ""


def reflowed(text: str) -> str:
    """Paragraphs filled to WIDTH; lines that are indented, such as commands and tables, stay as they are."""
    parts: list[str] = []
    for lines in (part.splitlines() for part in text.strip("\n").split("\n\n")):
        prose = next((n for n, line in enumerate(lines) if line.startswith(" ")), len(lines))
        parts.append("\n".join([textwrap.fill(" ".join(lines[:prose]), WIDTH), *lines[prose:]]).strip("\n"))
    return "\n\n".join(parts)
