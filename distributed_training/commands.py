"""The one place that writes commands which a person is told to type: pasted into a shell they mean what they say."""

from __future__ import annotations

import os
import shlex
import shutil
import sys


def command(*words: object) -> str:
    """Words as a shell takes them. A pair is a flag and its value, left out when the value is None."""
    said: list[str] = []
    for word in words:
        if not isinstance(word, tuple):
            said.append(quoted(word))
            continue
        flag, value = word
        if value is not None:  # a value that begins with a dash would be taken for a flag
            said.append(f"{flag}{'=' if str(value).startswith('-') else ' '}{quoted(value)}")
    return " ".join(said)


def python() -> str:
    """This interpreter as a shell calls it: by its name where that finds it, as in an activated environment."""
    return "python" if shutil.which("python") == sys.executable else sys.executable


def extra(name: str) -> str:
    """What installs one of this project's extras, at its exact versions, in the checkout."""
    return command(python(), "-m", "pip", "install", "-c", "constraints.txt", "-e", f".[{name}]")


def quoted(word: object) -> str:
    """One word of a command. What cannot be printed is written byte by byte, as bash and zsh read it."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    plain = (chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(text))
    return f"$'{''.join(plain)}'"
