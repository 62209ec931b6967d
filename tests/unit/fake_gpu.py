"""An nvidia-smi that says what a test wants."""

from __future__ import annotations

from pathlib import Path


def put_nvidia_smi(folder: Path, says: str, code: int = 0, *, hangs: bool = False) -> None:
    path = folder / "nvidia-smi"
    body = "exec /bin/sleep 20" if hangs else f"/bin/cat <<'END'\n{says}\nEND\nexit {code}"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
