"""The Hugging Face libraries read their settings when they are imported: this comes before any test imports them."""

import os
import signal

import pytest
from hypothesis import settings

# An example that takes long says that the machine is busy, not that the code is wrong.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Whoever runs the tests may be deaf to some signals (nohup, a shell's background); what tests start is not.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test reaches the real Hub or finds a developer's token; those that want a Hub pass an endpoint of their own.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# Uploads go through LFS, which the hub of the tests speaks, and not through xet, which it does not.
os.environ["HF_HUB_DISABLE_XET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of the chain's contract tests, which also run against a subtensor development node."""
    parser.addoption("--chain", default="local", help="local, or the ws:// address of a subtensor development node")
    parser.addoption("--sudo-uri", default="//Alice", help="that node's sudo key, which makes a subnet and pays for it")
