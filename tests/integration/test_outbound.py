"""A miner that nobody can dial, in whole rounds: included and audited, reduces nothing, its old address ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from subnet import HOST, connect, make_subnet, running, scored

from distributed_training.protocol.rules.duty import NO_REDUCER_DUTY

pytestmark = pytest.mark.alone

ROUNDS = 1


async def test_a_miner_without_a_port_contributes_over_streams_that_it_opened(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=3, validators=1, libp2p=True)
    chain = await connect(subnet, "miner-2")
    await chain.serve(HOST, 9)  # from before its port was closed; the chain takes no address back
    await chain.close()
    each = {"miner-2": {"hidden": True}, "owner": {"hidden": True}}  # an owner follows and publishes without a port
    async with running(subnet, each=each, rounds=ROUNDS + 1):
        await scored(subnet, ROUNDS - 1)
        hidden, (validator,) = subnet.nodes["miner-2"], subnet.validators()
        uids = sorted(node.uid for node in subnet.miners())
        for index in range(ROUNDS):
            told = [node.rounds()[index] for node in subnet.nodes.values()]
            assert len({event["state_root"] for event in told}) == 1
            for event in told:
                assert (event["applied"], event["included"]) == (True, uids), event["reason"]
                assert sorted(event["reducers"].values()) == sorted(set(uids) - {hidden.uid})
                assert event["credit"][str(hidden.uid)] == 1.0
            for audit in validator.all("audit", round=index):
                assert (audit["verdict"], audit["goodput_bytes_per_s"] > 0) == ("pass", True)
                assert audit["duty"] == (NO_REDUCER_DUTY if audit["target"] == hidden.uid else 1.0)
        roster = await hidden.parts.chain.roster(hidden.parts.clock.finalized)
        neuron = roster.by_public_key(hidden.parts.signer.public_key)
        assert neuron is not None and neuron.address == (HOST, 9) and neuron.reachable_at is None
