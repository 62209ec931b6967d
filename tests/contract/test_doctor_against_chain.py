"""The doctor's questions to others, over the real client, a real runtime's bytes, the Hub's protocol, real pages."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import tiny_training
from chain_keys import SEED
from chain_rig import NETUID, keep_caches_in, make_chain
from devnode import DevNode
from hub import Settings, TestHub, User
from huggingface_hub import constants
from test_page_source import build, flip

from distributed_training.chain.keys import write_wallet
from distributed_training.chain.local.genesis import start_clock
from distributed_training.data.page_file import open_page_table
from distributed_training.doctor.base import Finding, run_checks
from distributed_training.doctor.checks import CHECKS
from distributed_training.doctor.hub import ask_hub
from distributed_training.doctor.pages import look
from distributed_training.doctor.subject import Subject
from distributed_training.hub import Repo
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Role
from distributed_training.settings.config import load_config

pytestmark = pytest.mark.alone

RUN = tiny_training.manifest(tiny_training.GPT2).model_copy(update={"netuid": NETUID})
OF_THE_CHAIN = ("chain", "clock by the chain", "registered", "manifest", "tokenizer")
NOBODY = "ws://127.0.0.1:9"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[DevNode]:
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.05)
    start_clock(path)
    keep_caches_in(tmp_path)
    for name in ("miner-0", "validator-0", "ghost"):
        write_wallet(tmp_path / "wallets", "local", name, SEED)
    (tmp_path / "manifest.json").write_bytes(RUN.canonical())
    async with DevNode(path, spec=462) as made:
        yield made


async def asked(
    folder: Path, *flags: str, role: Role = Role.MINER, hotkey: str = "miner-0", netuid: int = NETUID
) -> dict[str, Finding]:
    """By name, the first of each, of the checks that need a chain and no peer."""
    wallet = ["--wallet.path", str(folder / "wallets"), "--wallet.name", "local", "--wallet.hotkey", hotkey]
    config = load_config(role, ["--netuid", str(netuid), *wallet, "--run-dir", str(folder), *flags])
    checks = [check for check in CHECKS if check.name in OF_THE_CHAIN]
    async with AsyncExitStack() as stack:
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        found = [finding async for finding in run_checks(Subject(role, config, scratch, stack), checks)]
    assert all(f.fix or f.state in ("ok", "skipped") for f in found) and "\n" not in str(found)
    return {finding.name: finding for finding in reversed(found)}


def chain(*endpoints: str) -> list[str]:
    first, *rest = endpoints
    return ["--subtensor.chain_endpoint", first, *(word for e in rest for word in ("--subtensor.fallback", e))]


async def test_a_hotkey_that_may_start(node: DevNode, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "scratch" not in path.parts}
    found = await asked(tmp_path, *chain(node.endpoint, NOBODY))
    states = {name: finding.state for name, finding in found.items()}
    assert [states[n] for n in ("chain", "finality", "runtime", "registered")] == ["ok"] * 4, found
    assert states["tokenizer"] == "fail", "the run of the samples names one that is nobody's"
    assert states["chain fallback 1"] == "warn" and states["clock by the chain"] == "ok", found
    assert "uid 3 since block" in found["registered"].found and RUN.sha256[:16] in found["manifest"].found
    after = {path for path in tmp_path.rglob("*") if path not in before and "scratch" not in path.parts}
    assert all(path.name.startswith(("chain.sqlite-", "runtime")) or "runtime" in path.parts for path in after), after


async def test_what_the_chain_says_against_it(node: DevNode, tmp_path: Path) -> None:
    ghost = await asked(tmp_path, *chain(NOBODY, node.endpoint), hotkey="ghost")
    assert ghost["chain"].state == "warn" and ghost["chain fallback 1"].state == "ok"
    assert ghost["registered"].state == "fail" and "btcli tx burned-register" in ghost["registered"].fix
    assert "a place costs" in ghost["registered"].found and "TAO" in ghost["registered"].found
    miner = await asked(tmp_path, *chain(node.endpoint), role=Role.VALIDATOR)
    assert miner["validator permit"].state == "fail" and "btcli stake add" in miner["validator permit"].fix
    good = await asked(tmp_path, *chain(node.endpoint), role=Role.VALIDATOR, hotkey="validator-0")
    assert good["validator permit"].state == "ok" and "75.0%" in good["validator permit"].found
    elsewhere = await asked(tmp_path, *chain(node.endpoint), netuid=9)
    assert elsewhere["chain"].state == "fail" and "--netuid 9: no such subnet" in elsewhere["chain"].found
    assert elsewhere["manifest"].state == "fail" and "netuid 7, --netuid says 9" in elsewhere["manifest"].found


async def test_a_node_that_lags_a_chain_that_nobody_serves_and_a_clock_that_is_off(
    node: DevNode, tmp_path: Path
) -> None:
    node.behind = 900
    with sqlite3.connect(tmp_path / "chain.sqlite") as db:  # 900 blocks that are gone by
        db.execute("update meta set value = ? where name = 'genesis_time'", (str(time.time() - 1000 * 0.05),))
    old = (await asked(tmp_path, *chain(node.endpoint)))["clock by the chain"]
    assert old.state == "fail" and "fast, or the chain stands still or its node lags" in old.found, old
    assert "set-ntp" in old.fix and "--subtensor.fallback" in old.fix
    async with DevNode(tmp_path / "chain.sqlite", spec=462) as other:
        lags = await asked(tmp_path, *chain(node.endpoint, other.endpoint))
    assert lags["clock by the chain"].state == "fail" and "the first node lags" in lags["clock by the chain"].found
    assert lags["chain"].state == "fail" and "it lags" in lags["chain"].found, lags
    assert other.endpoint in lags["clock by the chain"].fix
    nobody = await asked(tmp_path, *chain(NOBODY))
    assert nobody["chain"].state == "fail" and NOBODY in nobody["chain"].found
    assert nobody["clock by the chain"].state == nobody["registered"].state == "skipped"
    assert nobody["manifest"].state == "ok", "a file that is there needs no chain"


def test_a_clock_behind_its_own_chain(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", block_s=1.0)
    with sqlite3.connect(path) as db:
        db.execute("update meta set value = ? where name = 'genesis_time'", (str(time.time() + 300.0),))
        db.execute("update meta set value = '1' where name = 'closed'")
    write_wallet(tmp_path / "wallets", "local", "miner-0", SEED)
    found = asyncio.run(asked(tmp_path, *chain(f"file:{path}")))["clock by the chain"]
    assert found.state == "fail" and "301 s slow" in found.found and "set-ntp" in found.fix


# --- the Hub ----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestHub]:
    tokens = {"hf_write": User("me", "write"), "hf_read": User("me", "read")}
    with TestHub(tmp_path / "hub", settings=Settings(tokens)) as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.endpoint)  # as HF_ENDPOINT would, had it been set before
        yield made


def states(found: Sequence[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in found}


def test_a_token_is_asked_what_it_may_do(hub: TestHub) -> None:
    good = ask_hub("hf_write", "me/run", [])
    assert states(good) == {"Hub token": "ok", "Hub rate limit": "ok", "Hub repository": "ok"}
    assert "the node makes it" in good[-1].found and {seen.method for seen in hub.requests} == {"GET"}
    assert states(ask_hub("hf_read", None, []))["Hub token"] == "ok"
    for token, repo, words in (
        ("hf_read", "me/run", "it may only read"),
        ("hf_write", "others/run", "may not write in others"),
        ("hf_gone", "me/run", "does not know the token"),
    ):
        (wrong, *_) = ask_hub(token, repo, [])
        assert wrong.state == "fail" and words in wrong.found and wrong.fix, wrong
    hub.put("models", "me/other", {"thesis.pdf": b"text"})
    assert ask_hub("hf_write", "me/other", [])[-1].state == "fail"
    assert ask_hub(None, None, [Repo("me/absent", "dataset")])[-1].state == "fail"
    assert ask_hub(None, None, [Repo("me/other")])[-1].state == "ok"


def test_a_hub_that_is_busy_or_away_is_told_apart_from_a_wrong_token(hub: TestHub) -> None:
    hub.faults.add("rate_limit", seconds=40)
    (busy,) = ask_hub("hf_write", "me/run", [])
    assert busy.state == "warn" and "40 s" in busy.found
    hub.stop()
    (away,) = ask_hub("hf_write", "me/run", [])
    assert away.state == "fail" and "HTTPS_PROXY" in away.fix and hub.endpoint in away.found


# --- pages ------------------------------------------------------------------------------------------


def test_pages_are_really_read(tmp_path: Path) -> None:
    out, run_dir = build(tmp_path), tmp_path / "run"
    shutil.copytree(out, run_dir / "pages")
    table = open_page_table(out / "pages.bin")
    data = RUN.data.model_copy(update={"pages_sha256": table.sha256, "num_pages": table.num_pages})
    manifest: RunManifest = RUN.model_copy(update={"data": data})

    def seen(*flags: str, role: Role = Role.MINER) -> list[Finding]:
        config = load_config(role, ["--netuid", "7", "--run-dir", str(run_dir), *flags])
        return look(config, manifest, role, tmp_path)

    (fine,) = seen(role=Role.VALIDATOR)
    assert (
        fine.state == "ok" and f"{table.num_pages} of {table.num_pages} pages read and the held-out set" in fine.found
    )
    flip(run_dir / "pages" / "pages-00000.parquet")
    (damaged,) = seen()
    assert damaged.state == "fail" and "page 0" in damaged.found and "damaged" in damaged.fix, damaged
    mirrored = seen("--data.mirrors", str(out))
    assert [finding.state for finding in mirrored] == ["warn", "ok"], mirrored
    assert seen("--data.mirrors", str(tmp_path / "nowhere"))[-1].state == "fail"
    manifest = RUN
    (other,) = seen()
    assert other.state == "fail" and "the manifest asks for" in other.found
    (run_dir / "pages" / "pages.bin").write_bytes(b"DTPAGES2" + bytes(20))
    (cut,) = seen()
    assert cut.state == "fail" and "move it away" in cut.fix
