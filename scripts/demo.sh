#!/usr/bin/env bash
# A whole subnet on this machine: miners, validators and an owner as processes. bash scripts/demo.sh --help
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # for `sh scripts/demo.sh`
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# Before minutes of installing: what is wrong with the options, a port or the disk, as far as a bare Python can tell.
venv=${DT_VENV:-.venv}
if [ ! -s "$venv/.stamp" ]; then
    source scripts/find_python.sh
    _dt_look
    case "$_dt_verdict" in
        fits | bare)
            said=$("$_dt_base" -m distributed_training.localnet.before "$@" 2>&1 </dev/null) || [ $? != 2 ] || {
                echo "$said" >&2
                exit 2
            }
            ;;
    esac
fi

source scripts/setup.sh
exec "$DT_PYTHON" -m distributed_training.localnet "$@"
