"""The process that talks to Weights & Biases for one node; it is run as a file, by metrics/wandb.py.

On its own, because wandb replaces sys.exit and the standard streams, starts a server beside itself, prints, and waits
for its uploads: none of that is to happen where a model is trained. Reads JSON lines: first the run, then rows and
configs, until the end; answers the first with one line.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from contextlib import suppress
from typing import IO, Any

LAST_S = 3.0  # for what still has to be sent once the node is gone
PREFIXES = ("round", "own", "heldout", "audits", "weights")


def main() -> None:
    lines, answer = _taken(0, "r"), _taken(1, "w")
    _taken(2, "w")
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    run, told = _open(json.loads(next(lines)))
    print(json.dumps(told), file=answer, flush=True)
    if run is None:
        return
    for line in lines:
        with suppress(OSError):  # a full disk costs the rows of that time at least: wandb's log may give up
            _write(run, json.loads(line))
    run.finish()


def _taken(descriptor: int, mode: str) -> IO[str]:
    """A standard stream for us alone: wandb, and the server that it starts, get nothing instead."""
    kept = os.fdopen(os.dup(descriptor), mode, encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    return kept


def _end_with(parent: int) -> None:
    """Whatever hangs here, it does not outlive the node for long."""
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(LAST_S)
    os._exit(1)


def _open(asked: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(run, what to answer). An error is `final` when it is not one of the network."""
    import wandb
    from wandb.errors import AuthenticationError, UsageError

    try:
        settings = _settings(wandb, asked.pop("patience_s"))
        run = wandb.init(**asked, resume="allow", settings=settings)
    except (UsageError, AuthenticationError) as error:
        return None, {"error": str(error), "final": True}
    except Exception as error:  # the edge: its server process may have died, its server may answer anything
        refused = re.search(r"error 4(?!08|29)\d\d", str(error)) is not None
        return None, {"error": str(error), "final": refused}
    for prefix in PREFIXES:
        run.define_metric(f"{prefix}/*", step_metric="round")
    return run, {"entity": run.entity or "", "url": run.url}


def _settings(wandb: Any, patience_s: float) -> Any:
    """All that wandb would collect by itself is off; what is asked about the machine is answered with a dash."""
    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        email="-",
        finish_timeout=LAST_S,
        host="-",
        init_timeout=patience_s,
        label_disable=True,
        program="-",
        save_code=False,
        silent=True,
        symlink=False,
        username="-",
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_viewer=True,
        x_executable="-",
        x_save_requirements=False,
        x_transaction_log_flush_interval=1.0,  # what a kill costs
    )


def _write(run: Any, message: dict[str, Any]) -> None:
    if "config" in message:
        run.config.update(message["config"], allow_val_change=True)
        return
    row: dict[str, Any] = message["row"]
    for key, value in row.items():
        if isinstance(value, dict):
            row[key] = _table(run, key, value)
    run.log(row)


def _table(run: Any, key: str, value: dict[str, Any]) -> Any:
    """Bound at once: else wandb makes an artifact of it too, which keeps a second copy and the path of this machine."""
    import wandb

    table = wandb.Table(columns=value["columns"], data=value["data"])
    table.bind_to_run(run, key, run.step)
    return table


if __name__ == "__main__":
    main()
