"""What was found, for a person or for a program."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from distributed_training.doctor.base import Finding
from distributed_training.errors import on_one_line

EXIT_OK, EXIT_FAILS, EXIT_WRONG = 0, 1, 2
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "bright_black"}
NAME_WIDTH = 18


def exit_code(findings: Sequence[Finding]) -> int:
    return EXIT_FAILS if any(finding.state == "fail" for finding in findings) else EXIT_OK


def document(findings: Sequence[Finding], code: int, **about: object) -> str:
    """One JSON object; `about` of a doctor that got as far as knowing it."""
    shown = [asdict(finding) for finding in findings]
    return json.dumps({"ok": code == EXIT_OK, "exit_code": code, **about, "findings": shown}, indent=2)


def verdict(findings: Sequence[Finding], seconds: float) -> str:
    count = Counter(finding.state for finding in findings)
    parts = (f"{count[s]} {word}" for s, word in (("fail", "failed"), ("warn", "to look at"), ("skipped", "not asked")))
    told = ", ".join(part for part in parts if not part.startswith("0 "))
    return f"{count['ok']} of {len(findings)} in order{told and ', '}{told}; took {seconds:.1f} s"


class Printer:
    """Line by line as the answers come; in colour and wrapped on a terminal, as plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = None
        if sys.stdout.isatty():
            from rich.console import Console

            self._console = Console(highlight=False)

    def show(self, finding: Finding) -> None:
        if self._console is None:
            print(f"{finding.state:<8}{finding.name:<{NAME_WIDTH}} {on_one_line(finding.found)}")
            if finding.fix:
                print(f"{'':8}{'':{NAME_WIDTH}} fix: {on_one_line(finding.fix)}")
            sys.stdout.flush()
            return
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 1))
        row.add_column(width=7)
        row.add_column(width=NAME_WIDTH)
        row.add_column(ratio=1, overflow="fold")
        said = Text(on_one_line(finding.found))
        if finding.fix:
            said.append(f"\nfix: {on_one_line(finding.fix)}", "bold")
        row.add_row(Text(finding.state, COLOURS[finding.state]), finding.name, said)
        self._console.print(row)
