"""A small server that speaks the Hugging Face Hub's protocol, for tests and demos with the real clients.

    with TestHub(folder) as hub:
        sha = hub.put("datasets", "org/name", {"data/0.parquet": path})
        HfApi(endpoint=hub.endpoint, token="hf_test").create_repo("org/other")

It stands on its own: the standard library, and nothing of this project.
"""

from hub.context import DEFAULT_TOKENS, Settings, User
from hub.faults import Fault, Faults
from hub.server import TestHub
from hub.store import Store
from hub.traffic import Seen

__all__ = ["DEFAULT_TOKENS", "Fault", "Faults", "Seen", "Settings", "Store", "TestHub", "User"]
