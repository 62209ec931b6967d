"""A fresh Debian in a folder, for the README's commands: `debootstrap`, and commands in it as an ordinary user.

    system = FreshSystem(root, "trixie", mirror)
    system.build(("git", "python3-venv"))
    code = system.run("bash scripts/demo.sh --help", folder, log, timeout_s=1800)

Whatever mounts or starts something does so inside a mount and a PID namespace of its own (`unshare`), which the kernel
ends as a whole with its first process: however this program ends, nothing stays mounted or running, and no removal
of the folder can follow a mount. The network is this machine's, and so are what pip, the certificates and a proxy are
set to, so that a machine that reaches its packages only through these finds them. Needs root.
"""

from __future__ import annotations

import ast
import configparser
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from distributed_training.errors import ConfigError

USER, UID = "dt", 1000
HOME = f"/home/{USER}"
SCRIPTS = Path("/usr/share/debootstrap/scripts")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BUILD_S = 1800.0
COMMAND_S = 60.0
KILL_S = 10.0
# $1 the root, $2 user and group, $3 the folder, $4 the command; then what is shown read-only at its own place.
# The shell stays as the first process: one that changed its user would no longer be ended with its parent.
INSIDE = """set -e
root=$1 user=$2 folder=$3 command=$4; shift 4
mount --rbind /dev "$root/dev"; mount -t tmpfs tmpfs "$root/dev/shm"; mount -t proc proc "$root/proc"
mount --bind /sys "$root/sys"
for path; do mkdir -p "$root$path"; mount -o bind,ro "$path" "$root$path"; done
chroot --userspec="$user" "$root" bash -c 'cd "$1"; eval "$2"' bash "$folder" "$command"
exit $?"""


def check_tools() -> None:
    """Raises ConfigError with what is missing."""
    if os.geteuid() != 0:
        raise ConfigError("a fresh system is made with chroot and mounts: run this as root (sudo)")
    for program, package in (("debootstrap", "debootstrap"), ("unshare", "util-linux"), ("git", "git")):
        if shutil.which(program) is None:
            raise ConfigError(f"the program {program} is missing; run: apt install {package}")


def host_mirror() -> str:
    """The package mirror of this machine's own apt. Raises ConfigError where there is none."""
    if shutil.which("apt-get"):
        listed = _said("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages")
        for site in listed.split():
            if site.rstrip("/").endswith("/debian"):
                return site
    raise ConfigError("this machine's apt knows no Debian mirror; name one with --mirror URL")


def pip_settings(listed: str) -> dict[str, str]:
    """`pip config list` -> {"section.key": value}, without what comes from the environment."""
    pairs = (line.partition("=") for line in listed.splitlines() if "=" in line and not line.startswith(":env:"))
    return {name: str(ast.literal_eval(value)) for name, _, value in pairs}


def local_paths(values: Mapping[str, str]) -> Iterator[Path]:
    """Files and folders of this machine that settings name; of a file: index what its links may name too."""
    for word in " ".join(values.values()).split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists() and path != Path("/"):
            yield path.parent if word.startswith("file://") else path


def carried_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What the environment says about pip, proxies and certificates."""
    certificates = {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}
    return {
        name: value
        for name, value in environ.items()
        if name.startswith("PIP_") or name.lower().endswith("_proxy") or name in certificates
    }


def mounted_below(folder: Path, mountinfo: str) -> list[str]:
    """Mount points of /proc/self/mountinfo at or below `folder`."""
    points = [line.split()[4].encode().decode("unicode_escape") for line in mountinfo.splitlines()]
    return [point for point in points if Path(point).is_relative_to(folder)]


def remove(folder: Path) -> None:
    """Delete `folder`; raises ConfigError instead of deleting through a mount."""
    if points := mounted_below(folder.resolve(), Path("/proc/self/mountinfo").read_text()):
        raise ConfigError(f"{folder} is left alone: {points[0]} is a mount; run: umount {points[0]}")
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class FreshSystem:
    root: Path  # made by `build`
    suite: str
    mirror: str

    def build(self, packages: Sequence[str], log: Path) -> None:
        """The smallest system of the suite with `packages`, and this machine's settings. Raises ConfigError."""
        script = SCRIPTS / self.suite
        if not script.exists():
            script = SCRIPTS / "sid"  # a suite that is newer than this debootstrap
        include = "--include=" + ",".join(packages)
        command = ["debootstrap", "--variant=minbase", include, self.suite, str(self.root), self.mirror, str(script)]
        if _contained(command, log, BUILD_S, None) != 0:
            raise ConfigError(f"debootstrap could not make {self.suite} of {self.mirror}: {last_line(log)}")
        _said("chroot", str(self.root), "useradd", "--create-home", "--uid", str(UID), USER)
        if CERTIFICATES.exists():
            self._copy(CERTIFICATES)
        config = configparser.RawConfigParser()
        for name, value in pip_settings(_pip_config()).items():
            section, _, key = name.partition(".")
            config.read_dict({section: {key: value}})
        with (self.root / "etc" / "pip.conf").open("w") as file:
            config.write(file)
        for path in self._outside():
            if path.is_file():
                self._copy(path)

    def clone(self, repository: Path, name: str) -> str:
        """The committed tree in the user's home. Returns its place inside."""
        target = f"{HOME}/{name}"
        _said("git", "clone", "--quiet", "--no-hardlinks", str(repository), f"{self.root}{target}")
        _said("chown", "-R", f"{UID}:{UID}", f"{self.root}{target}")
        return target

    def run(self, command: str, folder: str, log: Path, timeout_s: float) -> int:
        """A shell command of the ordinary user in `folder`; its exit code, 124 after `timeout_s`."""
        shown = [str(path) for path in self._outside() if path.is_dir()]
        inside = ["sh", "-c", INSIDE, "sh", str(self.root), f"{UID}:{UID}", folder, command, *shown]
        environ = carried_variables(os.environ) | {"HOME": HOME, "USER": USER, "LANG": "C.UTF-8", "PATH": _PATH}
        return _contained(inside, log, timeout_s, environ)

    def _outside(self) -> list[Path]:
        return sorted(set(local_paths(pip_settings(_pip_config()) | carried_variables(os.environ))))

    def _copy(self, path: Path) -> None:
        target = self.root / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _contained(command: Sequence[str], log: Path, timeout_s: float, environ: Mapping[str, str] | None) -> int:
    unshare = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--", *command]
    with log.open("wb") as out:
        process = subprocess.Popen(
            unshare,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            # the first process inside, not unshare: that one's end then says that all inside is gone
            with suppress(psutil.Error):
                for child in psutil.Process(process.pid).children():
                    child.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(KILL_S)
            process.kill()
            process.wait()


def _pip_config() -> str:
    return _said(sys.executable, "-m", "pip", "config", "list")


def _said(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    if done.returncode != 0:
        raise ConfigError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
