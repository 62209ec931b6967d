"""scripts/setup.sh as a stranger's machine meets it: what it says when it cannot go on. Nothing is installed here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "dirname", "grep", "touch", "rm", "uname")


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A PATH with shell tools and no Python at all."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def run(bin_dir: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": str(bin_dir), "HOME": str(bin_dir.parent), "DT_VENV": str(bin_dir.parent / "venv"), **variables}
    bash = str(bin_dir / "bash")
    return subprocess.run(
        [bash, str(ROOT / "scripts" / "demo.sh"), "--help"], env=environ, capture_output=True, text=True, timeout=60
    )


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)
    return path


def test_no_python_is_one_line_with_the_fix(bin_dir: Path) -> None:
    done = run(bin_dir)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no Python 3.11 or 3.12 found; install one") and "python3.11-venv" in line
    assert not (bin_dir.parent / "venv").exists()


def test_a_python_without_venv_names_the_package(bin_dir: Path) -> None:
    answer = 'case "$2" in *ensurepip*) exit 4 ;; *) echo 3.12 ;; esac'
    script(bin_dir / "python3.12", answer)
    done = run(bin_dir)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no venv module" in line and "apt install python3.12-venv" in line


def test_a_python_that_does_not_run_is_passed_over(bin_dir: Path) -> None:
    script(bin_dir / "python3.12", "exit 127")
    script(bin_dir / "python3.11", "exit 3")
    assert "no Python 3.11 or 3.12 found" in run(bin_dir).stderr


def test_a_chosen_python_that_does_not_fit_is_named(bin_dir: Path) -> None:
    chosen = script(bin_dir / "my python", "exit 3")
    done = run(bin_dir, PYTHON=str(chosen))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: PYTHON={chosen} is not a Python 3.11 or 3.12")


def test_what_it_needs_is_said_before_anything_is_installed(bin_dir: Path) -> None:
    # a Python that fits and whose venv module fails, as on a full disk
    script(bin_dir / "python3.11", 'case "$1" in -c) exit 0 ;; *) exit 1 ;; esac')
    done = run(bin_dir)
    assert done.returncode == 2
    assert "GB of disk" in done.stdout and "minutes" in done.stdout
    assert done.stderr.startswith("error: could not create ")


def test_an_interrupted_install_is_redone_from_scratch_and_a_finished_one_is_not(bin_dir: Path) -> None:
    venv = bin_dir.parent / "venv"
    log = bin_dir.parent / "log"
    # stands for both Pythons: the real one for the stamp, a note in the log for venv and pip
    fake = f"""
echo "$*" >> "{log}"
case "$*" in
    "-m venv --clear "*)
        rm -rf "{venv}"; mkdir -p "{venv}/bin"; cp "$0" "{venv}/bin/python"; touch "{venv}/bin/activate" ;;
    "-m pip "*) exit "${{PIP_EXIT:-0}}" ;;
    "-c "*urllib*) exit 1 ;;
    *) exec "{sys.executable}" "$@" ;;
esac"""
    script(bin_dir / "python3.11", fake)
    (bin_dir / "python").symlink_to(shutil.which("true") or "")
    for tool in ("mkdir", "cp"):
        (bin_dir / tool).symlink_to(shutil.which(tool) or "")

    failed = run(bin_dir, PIP_EXIT="1")
    assert failed.returncode == 2 and "pip could not install torch" in failed.stderr
    (venv / "left-over").touch()

    again = run(bin_dir)
    assert again.returncode == 0, again.stderr
    assert not (venv / "left-over").exists()
    assert "Installed in" in again.stdout

    log.unlink()
    third = run(bin_dir)
    assert third.returncode == 0 and third.stdout == ""
    assert "-m pip" not in log.read_text()
