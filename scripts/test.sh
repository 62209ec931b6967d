#!/usr/bin/env bash
# Lint, types, import direction, all tests. Extra arguments go to pytest: bash scripts/test.sh -k codec
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

step() {
    local started=$SECONDS name=$1
    shift
    echo "== $name"
    "$@"
    echo "   ok, $((SECONDS - started)) s"
}

began=$SECONDS
step "lint" ruff check .
step "format" ruff format --check --quiet .
step "types" env PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright --pythonpath "$(command -v python)"
step "import direction" lint-imports --no-logo

if [ $# -gt 0 ]; then
    step "tests ($*)" python -m pytest "$@"
else
    step "tests" python -m pytest --durations=15 --cov --cov-report=
    step "coverage of protocol/rules/ and protocol/wire.py" \
        python -m coverage report --include='distributed_training/protocol/rules/*,distributed_training/protocol/wire.py' --fail-under=95
fi
echo "all green in $((SECONDS - began)) s"
