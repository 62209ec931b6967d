# Sourced by demo.sh and test.sh: makes or re-uses the virtual environment and activates it.
#   PYTHON=...          the Python to use; default: the first fitting one of python3.12, python3.11, python3
#   DT_VENV=...         where the environment lives; default .venv
#   DT_TORCH=...        what to install as torch; default the pinned version, as a CPU build
#   DT_TORCH_INDEX=...  extra package index for torch; default PyTorch's CPU index on Linux, none with DT_TORCH
# shellcheck shell=bash

DT_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

_dt_fail() {
    echo "error: $*" >&2
    exit 2
}

# 0: fits; 3: wrong version; 4: right version without venv
_dt_judge() {
    "$1" -c 'import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 12): sys.exit(3)
try: import ensurepip, venv
except ImportError: sys.exit(4)' >/dev/null 2>&1
}

# Prints the path of a fitting Python, or fails with one line that says what to do.
_dt_find_python() {
    local name path code bare=""
    local names=(python3.12 python3.11 python3)
    [ -z "${PYTHON:-}" ] || names=("$PYTHON")
    for name in "${names[@]}"; do
        while IFS= read -r path; do
            code=0
            _dt_judge "$path" || code=$?
            if [ "$code" = 0 ]; then
                echo "$path"
                return
            elif [ "$code" = 4 ]; then
                bare=${bare:-$path}
            fi
        done < <(type -aP "$name")
    done
    if [ -n "$bare" ]; then
        local version
        version=$("$bare" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        _dt_fail "$bare has no venv module; install it (Debian, Ubuntu: sudo apt install python$version-venv) and run this again"
    elif [ -n "${PYTHON:-}" ]; then
        _dt_fail "PYTHON=$PYTHON is not a Python 3.11 or 3.12 that runs; unset it or name one that is"
    fi
    _dt_fail "no Python 3.11 or 3.12 found; install one (Debian, Ubuntu: sudo apt install python3.11 python3.11-venv; macOS: brew install python@3.12) or set PYTHON=/path/to/python"
}

# The extra index that has CPU builds of torch, if this machine wants it and can reach it; else nothing.
_dt_torch_index() {
    if [ -n "${DT_TORCH_INDEX+set}" ]; then
        echo "$DT_TORCH_INDEX"
        return
    fi
    [ "$(uname -s)" = Linux ] && [ -z "${DT_TORCH:-}" ] || return 0
    local index=https://download.pytorch.org/whl/cpu
    if "$1" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=10).close()' \
        "$index" >/dev/null 2>&1; then
        echo "$index"
    else
        echo "note: PyTorch's CPU index cannot be reached; torch comes from pip's own index, perhaps with GBs of CUDA" >&2
    fi
}

# What the environment depends on: change any of it and it is brought up to date.
_dt_stamp() {
    "$1" - "$DT_ROOT" "${DT_TORCH:-}" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
digest = hashlib.sha256("\0".join(sys.argv[1:]).encode())
for name in ("pyproject.toml", "constraints.txt", "scripts/setup.sh"):
    digest.update((root / name).read_bytes())
print(sys.version_info[:2], digest.hexdigest())
PY
}

_dt_install() {
    local venv=$1 python=$2 began=$SECONDS torch index
    torch=${DT_TORCH:-$(grep '^torch==' "$DT_ROOT/constraints.txt")}
    echo "Installing into $venv: about 2 GB of disk; one to five minutes, most of it download (once)."
    if [ -e "$venv/.installing" ] || [ ! -x "$venv/bin/python" ]; then
        "$python" -m venv --clear "$venv" || _dt_fail "could not create $venv; is the disk full or read-only?"
    fi
    touch "$venv/.installing"
    rm -f "$venv/.stamp"
    index=$(_dt_torch_index "$venv/bin/python")
    _dt_constraints >"$venv/constraints.txt"
    local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input)
    echo "  torch ($torch${index:+, CPU build})"
    "${pip[@]}" ${index:+--extra-index-url "$index"} -c "$venv/constraints.txt" $torch ||
        _dt_fail "pip could not install torch (its reason is above); run this again, or set DT_TORCH"
    echo "  everything else"
    "${pip[@]}" -c "$venv/constraints.txt" -e "$DT_ROOT[dev]" ||
        _dt_fail "pip could not install the dependencies (its reason is above); run this again"
    _dt_stamp "$venv/bin/python" >"$venv/.stamp"
    rm -f "$venv/.installing"
    echo "Installed in $((SECONDS - began)) s."
}

# With DT_TORCH the user chose another torch: our pin of it must not get in the way.
_dt_constraints() {
    if [ -n "${DT_TORCH:-}" ]; then grep -v '^torch==' "$DT_ROOT/constraints.txt"; else cat "$DT_ROOT/constraints.txt"; fi
}

_dt_setup() {
    local venv=${DT_VENV:-$DT_ROOT/.venv}
    if [ -e "$venv/.installing" ] || [ "$(_dt_stamp "$venv/bin/python" 2>/dev/null)" != "$(cat "$venv/.stamp" 2>/dev/null)" ] ||
        [ ! -s "$venv/.stamp" ]; then
        local python
        python=$(_dt_find_python)
        _dt_install "$venv" "$python"
    fi
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
}

_dt_setup
