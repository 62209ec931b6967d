# Sourced by demo.sh and test.sh: makes or re-uses the virtual environment; afterwards $DT_PYTHON is its interpreter and
# the first `python` on the PATH. Valid for bash 3.2, the one of macOS.
#   PYTHON=...          the Python to use; default: the newest of Python 3.11 to 3.14 on the PATH
#   DT_VENV=...         where the environment lives; default .venv
#   DT_TORCH=...        what to install as torch; default the pinned version, as a CPU build
#   DT_TORCH_INDEX=...  extra package index for torch; default PyTorch's CPU index on Linux, none with DT_TORCH
# shellcheck shell=bash

DT_ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/find_python.sh
source "$DT_ROOT/scripts/find_python.sh"

_dt_fail() {
    echo "error: $*" >&2
    exit 2
}

# What the environment depends on: change any of it and it is brought up to date. Not the place of the checkout.
_DT_STAMP='import hashlib, pathlib, sys
digest = hashlib.sha256(sys.argv[2].encode())
for name in ("pyproject.toml", "constraints.txt", "scripts/setup.sh"):
    digest.update(pathlib.Path(sys.argv[1], name).read_bytes())
print(sys.version_info[:2], digest.hexdigest())'

_dt_stamp() {
    "$1/bin/python" -c "$_DT_STAMP" "$DT_ROOT" "${DT_TORCH:-}" 2>/dev/null </dev/null
}

_dt_ready() {
    [ ! -e "$1/.installing" ] && [ -s "$1/.stamp" ] && [ "$(_dt_stamp "$1")" = "$(cat "$1/.stamp")" ]
}

# Whether pip can bring this environment up to date; not after an interruption, nor without the Python it was made of.
_dt_whole() {
    [ ! -e "$1/.installing" ] && "$1/bin/python" -m pip --version >/dev/null 2>&1 </dev/null &&
        case "$("$1/bin/python" -c "$_DT_JUDGE" 2>/dev/null </dev/null)" in *" fits "* | *" bare "*) ;; *) false ;; esac
}

# What is no longer whole is emptied and made again: only an environment of ours, or the checkout's own .venv.
_dt_check_folder() {
    local venv=$1
    [ ! -e "$venv/.installing" ] && [ ! -e "$venv/.stamp" ] || return 0
    [ -n "${DT_VENV:-}" ] || [ ! -e "$venv/pyvenv.cfg" ] || return 0
    # shellcheck disable=SC2010
    [ -z "$(ls -A "$venv" 2>/dev/null | grep -v '^[.]uv[.]')" ] ||
        _dt_fail "$venv holds other things than an environment of this project; set DT_VENV to a folder of its own"
}

_dt_check_platform() {
    case "${DT_TORCH:+chosen }$(uname -sm)" in
        "chosen "* | "Linux x86_64" | "Linux aarch64" | "Darwin arm64") ;;
        *) _dt_fail "torch and hivemind have builds for Linux on x86_64 and aarch64 and for Macs with Apple silicon, not for $(uname -sm)" ;;
    esac
}

# The extra index that has CPU builds of torch, if this machine wants one; fails if it cannot be reached.
_dt_torch_index() {
    if [ -n "${DT_TORCH_INDEX+set}" ]; then
        echo "$DT_TORCH_INDEX"
        return
    fi
    [ "$(uname -s)" = Linux ] && [ -z "${DT_TORCH:-}" ] || return 0
    local index=https://download.pytorch.org/whl/cpu
    if "$1" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=10).close()' \
        "$index" >/dev/null 2>&1 </dev/null; then
        echo "$index"
    else
        echo "note: PyTorch's CPU index cannot be reached; torch comes from pip's own index, perhaps with 4 GB of CUDA" >&2
        return 1
    fi
}

# Half a GB more than what stays: for what was downloaded but not yet unpacked.
_dt_check_room() {
    local python=$1 venv=$2 gb=$3 free
    free=$("$python" -c 'import os, sys
s = os.statvfs(sys.argv[1]); print(max(0, int(s.f_bavail * s.f_frsize / 1e9 - 0.5)))' "$venv" 2>/dev/null </dev/null) || free=""
    case "$free" in
        "" | *[!0-9]*) ;; # not known
        *) [ "$free" -ge "$gb" ] || _dt_fail "$venv needs about $gb GB and its disk has too little left; make room or set DT_VENV to a folder on another disk" ;;
    esac
}

# Waits while another set-up works on this environment. The lock is on the folder itself and ends with descriptor 9 and
# its heirs, so that a set-up that was killed holds nobody up. A file system without locks goes without.
_dt_lock() {
    local python=$1 venv=$2 code=0
    exec 9<"$venv"
    "$python" -c 'import fcntl, sys
try: fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError: sys.exit(3)' >/dev/null 2>&1 || code=$?
    if [ "$code" = 3 ]; then
        echo "Another set-up is at work in $venv; waiting for it."
        "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    fi
}

_dt_make() {
    local venv=$1 said
    rm -rf "${venv:?}"/*
    said=$(_dt_run_maker "$venv" 2>&1 </dev/null) || _dt_fail "could not create $venv (${said##*"$_DT_NEWLINE"})"
}

_dt_run_maker() {
    case "$_dt_maker" in
        venv) "$_dt_base" -m venv "$1" ;;
        virtualenv) virtualenv --quiet --python "$_dt_base" "$1" ;;
        uv) "$_dt_uv" venv --quiet --seed --allow-existing --python "$_dt_base" "$1" ;;
    esac
}

# Installs; if pip fails, one line with its reason, which is that of the network if pip had to try again.
_dt_pip() {
    local venv=$1 what=$2 line reason="" log="$1/pip.log"
    shift 2
    # shellcheck disable=SC2086
    env $_DT_PIP_ENV TMPDIR="$venv/.tmp" "$venv/bin/python" -m pip install --quiet \
        --disable-pip-version-check --no-input -c "$venv/constraints.txt" "$@" 2>"$log" </dev/null && return
    while IFS= read -r line; do
        case "$line" in
            *"connection broken by "*) reason="no connection: ${line##*connection broken by }" ;;
            ERROR:*) reason=${reason:-${line#ERROR: }} ;;
        esac
    done <"$log"
    _dt_fail "pip could not install $what (${reason:-it gave no reason}; all it said is in $log); run this again when that is mended"
}

# What pyproject.toml asks for. The project itself is not installed but on the path (_dt_link): its folder may move.
_DT_REQUIREMENTS='import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["dev"]))'

_dt_install() {
    local venv=$1 began=$SECONDS torch index gb=2
    torch=${DT_TORCH:-$(grep '^torch==' "$DT_ROOT/constraints.txt")}
    if _dt_whole "$venv"; then
        index=$(_dt_torch_index "$venv/bin/python") || true
        echo "Bringing $venv up to date."
        touch "$venv/.installing" 2>/dev/null || _dt_fail "$venv is out of date and cannot be written; set DT_VENV to another folder"
    else
        [ -n "${_dt_maker:-}" ] || _dt_find_python "$venv/.uv.$$" # another set-up broke it meanwhile
        index=$(_dt_torch_index "$_dt_base") || gb=6
        _dt_check_room "$_dt_base" "$venv" "$gb"
        echo "Installing into $venv: about $gb GB of disk; one to five minutes, most of it download (once)."
        touch "$venv/.installing" 2>/dev/null || _dt_fail "cannot write to $venv; set DT_VENV to a folder that can be written"
        _dt_make "$venv"
    fi
    rm -f "$venv/.stamp"
    mkdir -p "$venv/.tmp"
    _dt_constraints >"$venv/constraints.txt"
    "$venv/bin/python" -c "$_DT_REQUIREMENTS" "$DT_ROOT/pyproject.toml" >"$venv/requirements.txt"
    echo "  torch ($torch${index:+, CPU build})"
    # shellcheck disable=SC2086
    _dt_pip "$venv" torch ${index:+--extra-index-url "$index"} $torch
    echo "  everything else"
    _dt_pip "$venv" "the dependencies" -r "$venv/requirements.txt"
    rm -rf "$venv/.tmp" "$venv/.uv".* "$venv/pip.log"
    _dt_stamp "$venv" >"$venv/.stamp"
    rm -f "$venv/.installing"
    echo "Installed in $((SECONDS - began)) s."
}

# With DT_TORCH the user chose another torch: our pin of it must not get in the way.
_dt_constraints() {
    if [ -n "${DT_TORCH:-}" ]; then grep -v '^torch==' "$DT_ROOT/constraints.txt"; else cat "$DT_ROOT/constraints.txt"; fi
}

# Puts the checkout on the path of the environment: relative to it where it lies inside, so that both may move.
_dt_link() {
    local venv=$1 site line=$DT_ROOT
    [ "$venv" != "$DT_ROOT/.venv" ] || line=../../../..
    for site in "$venv"/lib/python3.*/site-packages; do
        [ "$(cat "$site/distributed_training.pth" 2>/dev/null)" = "$line" ] ||
            echo "$line" 2>/dev/null >"$site/distributed_training.pth" || true
    done
}

_dt_setup() {
    local venv=${DT_VENV:-$DT_ROOT/.venv}
    case "$venv" in
        *:*) _dt_fail "an environment cannot live in $venv (a colon in its path); move the checkout or set DT_VENV" ;;
        /*) ;;
        *) venv=$DT_ROOT/$venv ;;
    esac
    unset PYTHONHOME PYTHONPATH # those of another Python, or of conda
    if ! _dt_ready "$venv"; then
        _dt_check_platform
        if ! _dt_whole "$venv"; then
            _dt_check_folder "$venv"
            _dt_find_python "$venv/.uv.$$"
        fi
        mkdir -p "$venv" 2>/dev/null || _dt_fail "cannot create $venv; set DT_VENV to a folder that can be written"
        _dt_lock "${_dt_base:-$venv/bin/python}" "$venv"
        _dt_ready "$venv" || _dt_install "$venv"
        exec 9<&-
    fi
    _dt_link "$venv"
    DT_PYTHON=$venv/bin/python
    # PYTHONPATH for what we start: an environment that two checkouts share may name the other one
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv" PYTHONPATH="$DT_ROOT"
}

_dt_setup
