#!/usr/bin/env bash
# Lint, types, import direction, all tests. Extra arguments go to pytest: bash scripts/test.sh -k codec
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # for `sh scripts/test.sh`
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

step() {
    local started=$SECONDS name=$1
    shift
    echo "== $name"
    "$@"
    echo "   ok, $((SECONDS - started)) s"
}

no_cache=""
if [ ! -w . ]; then # a checkout that cannot be written keeps no caches
    no_cache=--no-cache
    export RUFF_NO_CACHE=true COVERAGE_FILE="$VIRTUAL_ENV/.coverage"
fi

began=$SECONDS
# each by the environment's own interpreter: the programs in its bin name the folder it was made in
step "lint" "$DT_PYTHON" -m ruff check .
step "format" "$DT_PYTHON" -m ruff format --check --quiet .
types() { step "types" env PYRIGHT_PYTHON_IGNORE_WARNINGS=1 "$DT_PYTHON" -m pyright --pythonpath "$DT_PYTHON"; }
step "import direction" "$DT_PYTHON" -c 'from importlinter.cli import lint_imports_command as run; run()' --no-logo $no_cache

if [ $# -gt 0 ]; then
    types
    step "tests ($*)" "$DT_PYTHON" -m pytest "$@"
else
    # Two at a time but for those that say `alone`; a file's tests stay together. Only unit tests are traced: it makes
    # them half as slow again, and whole subnets would be too.
    beside=(-n 2 --dist loadfile -m "not alone")
    found=$(mktemp)
    types >"$found" 2>&1 & # one thread, while unit tests wait for disks and processes
    checking=$!
    trap 'rm -f "$found"' EXIT
    step "unit tests" "$DT_PYTHON" -m pytest tests/unit "${beside[@]}" --durations=10 --cov --cov-report=
    wait "$checking" || { cat "$found"; exit 1; }
    cat "$found"
    step "coverage of protocol/rules/ and protocol/wire.py by unit tests" \
        "$DT_PYTHON" -m coverage report --include='distributed_training/protocol/rules/*,distributed_training/protocol/wire.py' --fail-under=95
    step "all other tests, two at a time" "$DT_PYTHON" -m pytest --ignore=tests/unit "${beside[@]}" --durations=10
    step "tests on a real clock" "$DT_PYTHON" -m pytest -m alone --durations=15
fi
echo "all green in $((SECONDS - began)) s"
