"""Make the pictures of docs/ from a finished run of the demo."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ lies beside scripts/

from distributed_training.errors import ConfigError
from distributed_training.localnet.layout import REPOSITORY, RunPaths
from distributed_training.settings.arguments import Parser, folder, new_folder
from distributed_training.settings.entry import run_main

DESCRIPTION = """\
Make the pictures of docs/ again from a run of the demo that has ended: report.png, and the live page of it as
page-light.png, page-dark.png and page-phone.png (these need a chromium: apt-get install chromium).
"""
EXAMPLES = """\
  bash scripts/demo.sh --speeds 1,1,2,4 --rounds 8 --run-dir runs/pictures
  python scripts/pictures.py --run-dir runs/pictures
"""
DESKTOP, PHONE = {"width": 1280, "height": 2400}, {"width": 390, "height": 1700}
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": DESKTOP, "color_scheme": "light"},
    "dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "device_scale_factor": 2},
}
SETTLE_MS = 1000  # until the round that is shown has come


def parser() -> Parser:
    made = Parser(description=DESCRIPTION, examples=EXAMPLES)
    made.add_argument("--run-dir", type=folder, metavar="DIR", required=True, help="of a run that has ended")
    made.add_argument("--out", type=new_folder, metavar="DIR", default=REPOSITORY / "docs", help="default: docs/")
    return made


def report(run_dir: Path, out: Path) -> list[Path]:
    """report.png, drawn anew. Raises ConfigError for a run that has no summary."""
    from distributed_training.localnet.show.report import write_report

    path = RunPaths(run_dir).summary
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{path} cannot be read: expected the run directory of a demo that has ended") from None
    write_report(out / "report.png", summary)
    return [out / "report.png"]


def page(run_dir: Path, out: Path) -> list[Path]:
    """The live page: light, dark, on a phone. Raises ConfigError without a browser."""
    from playwright.sync_api import sync_playwright

    from benchmarks.chromium import ROWS_MS, WATCH, find_chromium, served

    paths = []
    with sync_playwright() as playwright, served(run_dir) as (url, _):
        browser = playwright.chromium.launch(executable_path=find_chromium())
        for name, view in VIEWS.items():
            context = browser.new_context(**view)
            context.add_init_script(WATCH)
            shown = context.new_page()
            shown.goto(url)
            shown.evaluate(ROWS_MS)
            shown.wait_for_timeout(SETTLE_MS)
            shown.locator("#round-back").click()  # the newest round has no scores yet
            shown.wait_for_timeout(SETTLE_MS)
            paths.append(out / f"page-{name}.png")
            shown.screenshot(path=paths[-1])
        browser.close()
    return paths


MAKERS = (report, page)  # each (run directory, folder) -> the pictures it made


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for make in MAKERS:
        for path in make(options.run_dir, options.out):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
