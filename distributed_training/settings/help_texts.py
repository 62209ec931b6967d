"""What `--help` of a node shows around its options: what it is for, examples, and which options belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distributed_training.protocol.types import Role

# In the order in which a person wants to set them; an option is in exactly one.
GROUPS: Mapping[str, Sequence[str]] = {
    "what every node is told": ("netuid", "wallet.name", "wallet.hotkey"),
    "where peers reach it": (
        "axon.port",
        "axon.external_ip",
        "axon.external_port",
        "axon.outbound_only",
        "axon.ip",
    ),
    "what it may take of a shared line": ("network.up_mbit", "network.down_mbit"),
    "what it computes with": (
        "device",
        "gpus",
        "micro_batch",
        "precision",
        "compile",
        "checkpoint_activations",
        "threads",
    ),
    "where things are kept": ("run_dir", "wallet.path", "disk.budget_gib", "data.cache_gib"),
    "logs, metrics, page": (
        "logging.debug",
        "logging.json",
        "logging.file",
        "metrics.prometheus",
        "metrics.wandb",
        "metrics.wandb_entity",
        "page_dir",
    ),
    "which chain": (
        "preset",
        "subtensor.network",
        "subtensor.chain_endpoint",
        "subtensor.fallback",
        "subtensor.archive_endpoint",
    ),
    "data and the Hugging Face Hub": (
        "pages",
        "checkpoints",
        "data.mirrors",
        "hub.repo",
        "hub.look",
        "hub.keep",
    ),
    "rarely needed": (
        "dry_run",
        "run",
        "manifest",
        "rounds",
        "steps_per_round",
        "exact_steps",
        "train_ahead",
        "act_on_head",
        "serve_snapshots",
    ),
}
REFUSED = (("axon.outbound_only", Role.VALIDATOR),)  # understood, so that it can be said why; not offered
STORY = {
    Role.MINER: "Train the run's model on this machine, average with the other miners, earn by the work done.",
    Role.VALIDATOR: "Check what the miners claim by doing parts of it again, and pay them through weights on chain.",
    Role.OWNER: "Publish the run's manifest and its checkpoints. The run goes on without it.",
}
_JOIN = """\
  in the run that the validators of subnet N are in
    python neurons/{0}.py --netuid N --wallet.name W --wallet.hotkey H
"""
_DEMO = """\
  in a subnet that scripts/demo.sh runs on this machine
    python neurons/{0}.py --preset local --run-dir RUN_DIR \\
        --wallet.hotkey extra --axon.port 9150
"""
EXAMPLES = {
    Role.MINER: _JOIN.format("miner")
    + """\
  at an address that peers dial, with numbers for Prometheus
    python neurons/miner.py --netuid N --wallet.name W --wallet.hotkey H \\
        --axon.external_ip 203.0.113.7 --metrics.prometheus 9101
"""
    + _DEMO.format("miner"),
    Role.VALIDATOR: _JOIN.format("validator")
    + """\
  the weights that it would set; nothing is written
    python neurons/validator.py --netuid N --wallet.name W --wallet.hotkey H \\
        --run-dir RUN_DIR --dry-run
"""
    + _DEMO.format("validator"),
    Role.OWNER: """\
  of the run that scripts/create_run.py made, with a public page
    python neurons/owner.py --netuid N --wallet.name W --wallet.hotkey H \\
        --run-dir runs/mine --page-dir public
  with its checkpoints on the Hugging Face Hub (a token in HF_TOKEN)
    python neurons/owner.py --netuid N --wallet.name W --wallet.hotkey H \\
        --run-dir runs/mine --checkpoints hub:ORG/NAME
""",
}
EPILOG = """\
The defaults shown are those of the preset chosen: --preset local --help shows others. Every option can be set as a
variable too: --axon.port as DT_AXON_PORT, --run-dir as DT_RUN_DIR; a flag wins over it.

exit codes: 0 stopped, or --rounds done; 1 trouble of this machine; 2 wrong input; 3 the hotkey is not registered (any
more); {missed}5 another process took the hotkey over. A supervisor should not restart 2, 3 and 5.
"""
