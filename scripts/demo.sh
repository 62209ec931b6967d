#!/usr/bin/env bash
# A whole subnet on this machine: miners, validators and an owner as processes. bash scripts/demo.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
exec python -m distributed_training.localnet "$@"
