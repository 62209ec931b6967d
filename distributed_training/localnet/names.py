"""What a node is called everywhere: `miner-2 (uid 5)`, an adversary `miner-3 (uid 6, free-rider)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def spelled(name: str, uid: int, adversary: str | None = None) -> str:
    return f"{name} (uid {uid}{f', {adversary}' if adversary else ''})"


def nodes_of(summary: Mapping[str, Any], role: str | None = None) -> dict[str, str]:
    """uid, as a summary's keys have it -> what the node is called, by uid; those that joined are among them."""
    nodes = {**summary["nodes"], **summary["joined"]}
    wanted = {name: node for name, node in nodes.items() if role in (None, node["role"])}
    ordered = sorted(wanted.items(), key=lambda item: item[1]["uid"])
    return {str(node["uid"]): spelled(name, node["uid"], node.get("adversary")) for name, node in ordered}


def many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def brief(name: str, longest: int = 16) -> str:
    """For a picture: what stands before the brackets is cut."""
    head, _, rest = name.partition(" (")
    return (head if len(head) <= longest else head[: longest - 1] + "…") + (f" ({rest}" if rest else "")


def called(summary: Mapping[str, Any], uids: Iterable[int | str]) -> str:
    """Those uids in words."""
    names = nodes_of(summary)
    return ", ".join(names.get(str(uid), f"uid {uid}") for uid in uids) or "none"
