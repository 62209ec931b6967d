"""A machine as bash sees it: a PATH with a few shell tools, and stubs for every Python, package manager and uv."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "cp", "dirname", "env", "grep", "ls", "mkdir", "rm", "touch", "uname")


@dataclass(frozen=True, slots=True)
class Machine:
    """`home` holds bin/ (the whole PATH), venv/ once it is made, and log, a line for every call of a stub."""

    home: Path

    @property
    def venv(self) -> Path:
        return self.home / "venv"

    @property
    def log(self) -> str:
        path = self.home / "log"
        return path.read_text() if path.exists() else ""

    def stub(self, name: str, script: str) -> Path:
        """A program that writes its name and arguments to the log and then does as `script` says."""
        path = self.home / "bin" / name
        path.unlink(missing_ok=True)
        path.write_text(f'#!{shutil.which("bash")}\necho "{name} $*" >>"{self.home}/log"\n{script}\n')
        path.chmod(0o755)
        return path

    def python(self, name: str, version: str, verdict: str = "fits", other: str = "exit 1", free_gb: int = 50) -> Path:
        """A Python that is judged so and finds so much room on any disk, whatever this machine's disk has; `other` is
        what it does about everything else.
        """
        judged = f'*ensurepip*) echo "{version} {verdict} $0"; exit ;;'
        return self.stub(name, f'case "$2" in {judged} *statvfs*) echo {free_gb}; exit ;; esac\n{other}')

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """scripts/demo.sh --help on this machine, or `arguments`."""
        return finished(self.start(*arguments, **variables))

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        environ = {"PATH": str(self.home / "bin"), "HOME": str(self.home), "DT_VENV": str(self.venv), **variables}
        return subprocess.Popen(
            arguments or [str(self.home / "bin" / "bash"), str(ROOT / "scripts" / "demo.sh"), "--help"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def refusal(self, **variables: str) -> str:
        """The one line that a set-up ends with, which must have had exit code 2."""
        done = self.run(**variables)
        assert done.returncode == 2, done
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        return line


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def make_machine(home: Path) -> Machine:
    folder = home / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return Machine(home)


def working_python(machine: Machine, pip: str = "exit 0") -> str:
    """What a stub does to stand for a whole Python and its environment: venv copies it, pip does as `pip` says."""
    return f"""
case "$*" in
    "-m venv "*) rm -rf "{machine.venv}/bin"; mkdir -p "{machine.venv}/bin"; touch "{machine.venv}/pyvenv.cfg"
        cp "$0" "{machine.venv}/bin/python" ;;
    "-m pip --version"*) exit 0 ;;
    "-m pip "*) {pip} ;;
    "-c "*urllib*) exit 1 ;;
    "-m distributed_training.localnet"*) echo "started by $0" ;;
    *) exec "{sys.executable}" "$@" ;;
esac"""
