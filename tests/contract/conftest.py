"""Which chain the contract tests of the chain are asked of: --chain local, or ws://HOST:PORT."""

from __future__ import annotations

import pytest
from chain_rig import keep_caches_in
from sudo_rig import RealSubnet

LOCAL = "local"
REAL_TEST_S = 3600  # blocks of 12 s


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A development node is asked what every chain must do; what only the local chain can be told to do is skipped."""
    if config.getoption("--chain") == LOCAL:
        return
    for item in items:
        if item.get_closest_marker("any_chain") is None:
            item.add_marker(pytest.mark.skip(reason="asks for what only a local chain can be told to do"))
        item.add_marker(pytest.mark.timeout(REAL_TEST_S))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" in metafunc.fixturenames:
        local, everywhere = metafunc.config.getoption("--chain") == LOCAL, ["file", "memory"]
        if metafunc.definition.get_closest_marker("any_chain") is not None:
            everywhere.append("node")
        metafunc.parametrize("world", everywhere if local else ["real"], indirect=True)


@pytest.fixture(scope="session")
def real_subnet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RealSubnet | None:
    """Made once, with the sudo key; None where the chain is a local one."""
    endpoint, sudo_uri = (str(request.config.getoption(name)) for name in ("--chain", "--sudo-uri"))
    if endpoint == LOCAL:
        return None
    keep_caches_in(tmp_path_factory.mktemp("sdk"))
    return RealSubnet(endpoint, sudo_uri).make()
