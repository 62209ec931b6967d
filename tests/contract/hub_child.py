"""A publisher that dies at one exact point: python hub_child.py ENDPOINT FOLDER CACHE POINT."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from checkpoint_rig import REPO, RUN
from huggingface_hub import HfApi

from distributed_training.checkpoints.hub import HubCheckpoints

DIED = 9


class Dying(HfApi):
    """The real client, which ends the process before or after one of its calls, as kill -9 would."""

    def __init__(self, point: str, **options: Any) -> None:
        super().__init__(**options)
        self._point = point

    def create_commit(self, *args: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._die_at("before the commit")
        made = super().create_commit(*args, **options)
        self._die_at("after the commit, before the tag")
        return made

    def preupload_lfs_files(self, *args: Any, **options: Any) -> None:
        super().preupload_lfs_files(*args, **options)
        self._die_at("after the large files, before the commit")

    def _die_at(self, point: str) -> None:
        if point == self._point:
            os._exit(DIED)


def main(endpoint: str, folder: str, cache: str, point: str) -> None:
    store = HubCheckpoints(REPO, RUN, Path(cache), token="hf_test", endpoint=endpoint)
    store._api = Dying(point, endpoint=endpoint, token="hf_test")
    store.check(write=True)
    store.publish(4, Path(folder))
    os._exit(DIED)  # after the tag, before anybody says it on chain


if __name__ == "__main__":
    main(*sys.argv[1:])
