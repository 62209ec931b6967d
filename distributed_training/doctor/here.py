"""The checks that this machine alone can answer. Each says what it saw as preflight does: the fix stands after "; "."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from distributed_training.averaging.disk import FOLDERS, GIB, gib, required_bytes, used_bytes
from distributed_training.chain.keys import coldkey_warning, wallet_command
from distributed_training.commands import quoted
from distributed_training.devices import no_gpu, torch_advice, torch_here, usable
from distributed_training.doctor.base import Check, Finding, in_thread, slow
from distributed_training.doctor.machine import clock_finding, files_finding, folder_findings
from distributed_training.doctor.packages import SETUP
from distributed_training.doctor.subject import Subject
from distributed_training.doctor.wallet import mode_finding
from distributed_training.errors import ConfigError, DistributedTrainingError, said
from distributed_training.memory import memory_bytes
from distributed_training.network.listeners import listener
from distributed_training.network.ports import free_port
from distributed_training.preflight import check_places
from distributed_training.settings.config import require_address

SLOW_DISK = "the disk does not answer: look at dmesg; give a folder on another one with --run-dir"


def parted(name: str, error: Exception, fix: str) -> Finding:
    """A line that says what is wrong, then after "; " what mends it; `fix` where it says none."""
    found, _, mend = said(error).partition("; ")
    return Finding(name, "fail", found, mend or fix)


async def configuration(subject: Subject) -> Sequence[Finding]:
    """What was typed is understood by now; what of it has no effect, or could not be reached, is said here."""
    config, name = subject.config, "configuration"
    found = [Finding(name, "warn", said(Exception(line)), "leave it out") for line in config.warnings]
    for ask in (lambda: require_address(config), lambda: check_places(subject.role, config)):
        try:
            ask()
        except ConfigError as error:
            found.append(parted(name, error, "give another one"))
    return found or [Finding(name, "ok", f"{subject.role.name.lower()} of subnet {config.netuid}, in {config.run_dir}")]


async def node(subject: Subject) -> Sequence[Finding]:
    if subject.node is None:
        return [Finding("node", "ok", f"none of hotkey {subject.config.wallet.hotkey} runs here")]
    more = "its device, memory and port are not tried, it needs them"
    return [Finding("node", "ok", f"it runs here now, {subject.node}; {more}")]


async def clock(subject: Subject) -> Sequence[Finding]:
    if subject.config.local_chain is not None:
        return [Finding("clock", "ok", "all nodes of a local chain have the same")]
    return [clock_finding()]


async def open_files(subject: Subject) -> Sequence[Finding]:
    return [files_finding()]


async def run_folder(subject: Subject) -> Sequence[Finding]:
    config = subject.config
    own = config.node_dir if config.node_dir.is_dir() else config.run_dir  # that of the node may be another user's
    return await in_thread(lambda: folder_findings("--run-dir", own))


async def disk(subject: Subject) -> Sequence[Finding]:
    """What the run makes a node keep, beside what is free. The page cache comes on top where pages are fetched."""
    manifest, num_coords, config = await subject.manifest.get(), await subject.num_coords.get(), subject.config
    needed, budget = required_bytes(manifest, num_coords), config.disk.budget
    if budget is not None and budget < needed:
        found = f"--disk.budget_gib {config.disk.budget_gib:g} is too small for this run, which needs {gib(needed)} GiB"
        return [Finding("disk", "fail", found, f"--disk.budget_gib {gib(needed)}, or leave it out")]
    fetched = not isinstance(config.pages, Path) or not config.pages.exists()
    cache = int(config.data.cache_gib * GIB) if fetched else 0

    def room() -> tuple[int, int]:
        there = next(path for path in (config.run_dir, *config.run_dir.parents) if path.is_dir())
        disk = os.statvfs(there)
        kept = used_bytes(config.node_dir / name for name in FOLDERS)
        return disk.f_bavail * disk.f_frsize, kept + used_bytes((config.run_dir / "page_cache",) if cache else ())

    free, there = await in_thread(room)
    found = f"this run needs up to {gib(needed + cache)} GiB in {config.run_dir}; {gib(free + there)} are there for it"
    if free + there >= needed + cache:
        return [Finding("disk", "ok", found)]
    fix = f"make room for {gib(needed + cache - free - there)} GiB more, or give a folder on a larger disk: --run-dir"
    return [Finding("disk", "fail", found, fix)]


async def memory(subject: Subject) -> Sequence[Finding]:
    """By the plan of the run's phases, with one sequence that goes through the model at a time."""
    manifest, shapes, device = await subject.manifest.get(), await subject.shapes.get(), await subject.device.get()
    from distributed_training.averaging.memory import memory_plan  # late: it loads torch

    plan = memory_plan(manifest, shapes, subject.role, card_bytes=device.memory_bytes or None)
    on_device, needed = plan.device_bytes(), plan.host_bytes(trains=not device.memory_bytes)
    limit, free = memory_bytes()
    found = f"a node of this run takes about {gib(needed)} GiB; {gib(limit)} are there, {gib(free)} of them free"
    fix = "stop what else runs here, or use a machine (a container: a limit) with more memory"
    state = "fail" if limit < needed else "warn" if free < needed and subject.node is None else "ok"
    findings = [Finding("memory", state, found, "" if state == "ok" else fix)]
    if device.memory_bytes:
        enough = device.memory_bytes >= on_device
        found = f"about {gib(on_device)} GiB with --micro-batch 1, of {gib(device.memory_bytes)} GiB of {device.name}"
        findings.append(Finding("GPU memory", "ok" if enough else "fail", found, "" if enough else "use a larger GPU"))
    return findings


async def device(subject: Subject) -> Sequence[Finding]:
    """What the machine has, beside what torch can do with it, asked of both."""
    asked, name = subject.config.device, "device"
    gpus = await subject.gpus.get()
    torch = torch_here()
    why, mend = no_gpu(gpus, torch)
    broken = [Finding(name, "fail", f"{gpu.name}: {gpu.trouble}", gpu.fix) for gpu in gpus if gpu.trouble]
    try:
        seen = await subject.device.made()
    except TimeoutError:
        fix = f"{torch_advice(gpus)}; or reboot, and look at dmesg" if gpus else f"{SETUP}; or restart this machine"
        return [*broken, slow(name, fix)]
    except ConfigError as error:
        fix = mend or "--device cpu"
        return [*broken, Finding(name, "fail", f"{said(error).partition('; ')[0]}{why and ': '}{why}", fix)]
    except DistributedTrainingError as fault:
        return [*broken, Finding(name, "fail", said(fault), mend or f"{SETUP}; if it stays: reboot, and look at dmesg")]
    if broken:
        return broken
    if seen.name == "cpu" and gpus and asked == "auto":
        found = f"a node would use the CPU although there is a GPU: {why or 'this torch does not find it'}"
        return [Finding(name, "fail", found, mend or torch_advice(gpus))]
    shown = str(usable(gpus)[0]) if seen.name != "cpu" and usable(gpus) else "no GPU is used"
    return [Finding(name, "ok", f"{seen.name}, {torch}; {shown}")]


async def hotkey(subject: Subject) -> Sequence[Finding]:
    wallet = subject.config.wallet
    keyfile = wallet.path / wallet.name / "hotkeys" / wallet.hotkey
    fix = f"restore it with: {wallet_command('regen-hotkey', wallet.path, wallet.name, wallet.hotkey)}"
    try:
        key = await subject.hotkey.made()
        findings = [Finding("hotkey", "ok", f"{key.hotkey} ({wallet.name}/{wallet.hotkey})")]
    except ConfigError as error:
        if "this user may not" in said(error):
            fix = f"sudo chown -R $USER {quoted(wallet.path)} && chmod -R u+rwX,go-rwx {quoted(wallet.path)}"
        findings = [parted("hotkey", error, fix)]
    mode = mode_finding(keyfile)
    return findings if mode is None else [*findings, mode]


async def coldkey(subject: Subject) -> Sequence[Finding]:
    config = subject.config
    if config.local_chain is not None:
        return [Finding("coldkey", "ok", "that of a local chain is play money")]
    warning = coldkey_warning(config.wallet.path, config.wallet.name)
    if warning is None:
        return [Finding("coldkey", "ok", "its private part is not on this machine")]
    found, _, fix = warning.rpartition(". ")
    return [Finding("coldkey", "warn", found, fix)]


async def ports(subject: Subject) -> Sequence[Finding]:
    """Those that a node listens on: of its own node that runs here it is right that they are in use."""
    config, findings = subject.config, []
    if config.axon.outbound_only:
        findings.append(Finding("port", "skipped", "with --axon.outbound_only nothing listens"))
    else:
        findings.append(await _port(subject, "port", "--axon.port", config.axon.ip, config.axon.port))
    if config.metrics.prometheus is not None:
        host, _, number = config.metrics.prometheus.rpartition(":")
        findings.append(await _port(subject, "metrics port", "--metrics.prometheus", host, int(number)))
    return findings


async def _port(subject: Subject, name: str, flag: str, host: str, number: int) -> Finding:
    try:
        await free_port(host, number, 0.0 if subject.node else 3.0, flag=flag)
    except ConfigError as error:
        user = await in_thread(lambda: listener(number))
        if subject.node is not None and (user.pid is None or _is_of(user.pid, subject.node.pid)):
            return Finding(name, "ok", f"{number} is in use by the node itself, process {subject.node.pid}")
        return parted(name, error, f"give another one with {flag}")
    return Finding(name, "ok", f"{number} is free on {host}")


def _is_of(pid: int, node: int) -> bool:
    """Is it the node, or a daemon that it started?"""
    try:
        return pid == node or node in {parent.pid for parent in psutil.Process(pid).parents()}
    except psutil.Error:
        return False


async def daemon(subject: Subject) -> Sequence[Finding]:
    fix = f"{SETUP}; the p2p daemon is a program inside of hivemind that this user must be able to run"
    try:
        await subject.transport.made()
    except TimeoutError:
        return [slow("p2p daemon", fix)]
    except (DistributedTrainingError, ImportError, OSError) as error:
        return [Finding("p2p daemon", "fail", said(error), fix)]
    return [Finding("p2p daemon", "ok", "it starts, under a peer key of this moment")]


HERE: tuple[Check[Subject], ...] = (
    Check("configuration", configuration, SLOW_DISK),
    Check("node", node),
    Check("clock", clock),
    Check("open files", open_files),
    Check("run dir", run_folder, SLOW_DISK),
    Check("disk", disk, SLOW_DISK, 16.0),
    Check("memory", memory, limit_s=16.0),
    Check("device", device, limit_s=16.0),
    Check("hotkey", hotkey),
    Check("coldkey", coldkey),
    Check("port", ports),
    Check("p2p daemon", daemon, limit_s=16.0),
)
