"""What the doctor makes of what others say: pure, so that every answer can be given to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from samples import RUN, commitment, key, neuron, roster

from distributed_training import PROTOCOL_VERSION
from distributed_training.doctor.base import Finding
from distributed_training.doctor.chain import judged, set_clock
from distributed_training.doctor.hub import may_write
from distributed_training.doctor.peers import Took, knocked, speed, take, validators_of
from distributed_training.doctor.run import other_version
from distributed_training.doctor.standing import access, owner_key, permit, run_voice
from distributed_training.doctor.work import pay, steps_done
from distributed_training.finding.content import Wanted
from distributed_training.finding.serving import FileService
from distributed_training.journal import Journal
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.preflight import not_listed
from distributed_training.protocol.sections import AccessSection
from distributed_training.protocol.types import Role
from distributed_training.settings.config import load_config

HERE, THERE = "8.8.8.8", "9.9.9.9"


@pytest.mark.parametrize(
    ("age_s", "web_s", "state", "words"),
    [
        (-400.0, None, "fail", ["400 s slow", "set-ntp"]),
        (-8.0, None, "warn", ["8 s slow"]),
        (-8.0, -8.0, "fail", ["8 s slow"]),
        (400.0, None, "fail", ["400 s fast, or the chain stands still or its node lags", "set-ntp", "fallback"]),
        (400.0, 399.0, "fail", ["399 s fast: this machine's clock is wrong", "set-ntp"]),
        (400.0, 0.4, "fail", ["the clock is right; the chain stands still, or this node of it lags", "--subtensor"]),
    ],
)
def test_an_old_block_and_a_wrong_clock_are_told_apart_as_far_as_anybody_can(
    age_s: float, web_s: float | None, state: str, words: list[str]
) -> None:
    found = judged(age_s, 12.0, web_s, 0)
    assert found.state == state and all(word in found.found + found.fix for word in words), found


def test_the_clock_is_set_as_the_system_does() -> None:
    assert "sntp" in set_clock("darwin") and ("timedatectl" in set_clock("linux") or "hwclock" in set_clock("linux"))


def told(*seen: tuple[str, bool], announced: tuple[str, int] | None = None) -> Finding:
    return knocked(seen, 8091, announced, public=True, running=False)


def test_the_port_is_open_where_validators_get_in() -> None:
    assert told((HERE, True), (HERE, True)).state == "ok"
    assert told((HERE, False), (HERE, True), announced=(HERE, 8091)).state == "ok"
    shut = told((HERE, False), (HERE, False), announced=(HERE, 8091))
    assert shut.state == "fail" and "Open TCP port 8091" in shut.fix and "--axon.outbound_only" in shut.fix
    inside = told(("192.168.1.7", False))
    assert inside.state == "fail" and "private address" in inside.found
    assert told().state == "warn" and "minute" in told().fix
    assert told((THERE, True), announced=(HERE, 8091)).state == "warn"


def test_a_line_is_judged_by_what_came_and_by_who_asked() -> None:
    fast, slow, small = Took("uid 1", 4_000_000, 2.0), Took("uid 2", 400_000, 4.0), Took("uid 3", 0, 0.0, "is away")
    assert speed([fast, small], 1e6, known=False).state == "ok"
    assert speed([slow, slow], 1e6, known=True).state == "fail"
    a_stranger = speed([slow, slow], 1e6, known=False)
    assert a_stranger.state == "warn" and "128 KiB/s" in a_stranger.found and "1.0 MB/s each way" in a_stranger.found
    nothing = speed([small], 1e6, known=True)
    assert nothing.state == "skipped" and "uid 3: is away" in nothing.found


async def test_what_a_peer_gives_a_stranger_is_taken_and_timed() -> None:
    switch, data = MemorySwitch(), bytes(3 << 20)
    holder, me = (MemoryTransport(switch, PeerIdentity(bytes([n]) * 32)) for n in (1, 2))
    await holder.start()
    await me.start()
    book = PeerBook(holder, 1, key(1), PeerIdentity(bytes([1]) * 32).sign, verify_peer)
    FileService(book, {hashlib.sha256(data).digest(): memoryview(data)})
    wanted = Wanted("pages.bin", hashlib.sha256(data).digest(), 1 << 24)
    took = await take(me, holder.peer_key, "uid 1", wanted)
    assert 1.5e6 < took.num_bytes < 2 << 20 and took.bytes_per_s > 1e6 and took.why, took
    absent = await take(me, holder.peer_key, "uid 1", Wanted("pages.bin", bytes(32), 1 << 24))
    assert absent.num_bytes == 0 and "does not have it" in str(absent)
    await me.stop()
    await holder.stop()


def test_who_is_asked_to_knock() -> None:
    of_run = neuron(1, Role.VALIDATOR, stake=1.0)
    other = neuron(2, Role.VALIDATOR, stake=9.0, commitment=commitment(2, Role.VALIDATOR, run=bytes(8)))
    silent = neuron(3, Role.VALIDATOR, stake=9.0, commitment=None)
    nowhere = neuron(4, Role.VALIDATOR, stake=9.0, address=None)
    assert validators_of(roster(other, of_run, silent, nowhere, neuron(5)), RUN.tag) == [key(1, "peer"), key(2, "peer")]


def test_another_protocol_is_named_with_the_way_to_it() -> None:
    data = json.loads(RUN.canonical())
    newer = other_version(json.dumps(data | {"protocol_version": PROTOCOL_VERSION + 3, "unknown": 1}).encode())
    older = other_version(json.dumps(data | {"protocol_version": 1}).encode())
    assert newer is not None and "git pull" in newer.finding("run").fix
    assert older is not None and "git tag" in older.finding("run").fix
    for fine in (RUN.canonical(), b"{", b"[]", b'{"protocol_version": true}', b'"' * 10_000, b"[" * 100_000):
        assert other_version(fine) is None


def test_a_role_needs_a_permit_a_voice_and_its_key(tmp_path: Path) -> None:
    config = load_config(Role.VALIDATOR, ["--netuid", "38", "--run-dir", str(tmp_path), "--wallet.name", "cold"])
    me, big = neuron(1, may_validate=False, stake=2.0), neuron(2, Role.VALIDATOR, stake=50.0)
    poor = permit(me, roster(me, big), config)
    assert poor.state == "fail" and "the least with stake 50.0" in poor.found
    assert poor.fix.startswith("stake more: btcli stake add --network finney --netuid 38 -w cold --hotkey 5hot1")
    assert permit(replace(me, may_validate=True), roster(me, big), config).state == "ok"
    block = RUN.timing.first_block + 1
    assert run_voice(None, RUN, roster(me, big, block=block)).state == "ok"
    away = replace(big, commitment=None)
    assert run_voice(None, RUN, roster(me, away, block=block)).state == "warn"
    assert run_voice(away, RUN, roster(me, away, block=block)).state == "ok", "its own stake is enough"
    assert owner_key(key(7), RUN, roster(me)).state == "fail"


def test_a_miner_that_the_run_does_not_list_is_told_before_it_starts() -> None:
    (listed, stranger), cold = [neuron(i, coldkey=key(8)) for i in (1, 2)], key(8).hex()

    def told(hotkeys: list[str], coldkeys: list[str]) -> list[str]:
        run = RUN.model_copy(update={"access": AccessSection(hotkeys=hotkeys, coldkeys=coldkeys)})
        return [access(who, run).state for who in (listed, stranger)]

    assert told([], []) == ["ok", "ok"] == told([], [cold]) and told([key(1).hex()], []) == ["ok", "fail"]
    run = RUN.model_copy(update={"access": AccessSection(hotkeys=[key(1).hex()], coldkeys=[])})
    why = not_listed(stranger, run)
    assert why is not None and "\n" not in why and "neither the hotkey 5hot2 nor its coldkey 5" in why
    beyond = access(neuron(RUN.max_uids), RUN)
    assert beyond.state == "fail" and f"has pages for the uids below {RUN.max_uids}, and the hotkey" in beyond.found


def test_what_a_fine_grained_token_may_write() -> None:
    def scopes(name: str, *permissions: str) -> object:
        return {"scoped": [{"entity": {"type": "user", "name": name}, "permissions": [*permissions]}]}

    assert may_write(scopes("me", "repo.write", "repo.content.read"), "me/run")
    assert may_write(scopes("me/run", "repo.content.write"), "me/run")
    assert not may_write(scopes("me", "repo.content.read"), "me/run")
    assert not may_write(scopes("me/other", "repo.write"), "me/run")
    assert may_write({"newly": "said"}, "me/run"), "nobody knows: writing shows"


def test_what_is_earned_is_an_estimate_by_what_others_are_paid() -> None:
    cap = RUN.average.token_cap
    alone = pay(RUN, roster(neuron(1)), cap, b"", outbound_only=False)
    assert "nobody of the run is paid yet" in alone.found
    others = roster(neuron(1, incentive=0.5), neuron(2, incentive=0.25), neuron(3, incentive=0.25))
    assert "estimate: 33.3% of the miners' pay beside 3" in pay(RUN, others, 9 * cap, b"", outbound_only=False).found
    assert "estimate: 40.0%" in pay(RUN, others, cap, key(2), outbound_only=False).found
    assert "estimate: 28.6%" in pay(RUN, others, cap, b"", outbound_only=True).found


def test_steps_are_read_beside_a_node_that_writes(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    for index, steps in enumerate((0, 4, 6)):
        journal.save_round(index, {"applied": True, "steps": steps})
    assert steps_done(tmp_path / "journal.sqlite") == [6, 4]
    journal.close()
    (tmp_path / "broken").write_text("no journal")
    assert steps_done(tmp_path / "broken") == steps_done(tmp_path / "absent") == []
