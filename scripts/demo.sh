#!/usr/bin/env bash
# A whole subnet on this machine: miners, validators and an owner as processes. bash scripts/demo.sh --help
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # for `sh scripts/demo.sh`
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
exec "$DT_PYTHON" -m distributed_training.localnet "$@"
