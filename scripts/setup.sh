# Makes the virtual environment of this checkout, or brings it up to date: bash scripts/setup.sh
# With the build of torch that the GPU of this machine needs (several GB, said before the download), else the CPU's.
#
#   PYTHON=...          the Python to use; default: the newest of Python 3.11 to 3.14 on the PATH
#   DT_VENV=...         where the environment lives; default .venv
#   DT_TORCH=...        which torch: auto (the default), cpu, cu130, cu126, rocm7.2, or what pip takes (torch==2.13.0);
#                       it is remembered until the next one is named
#   DT_TORCH_INDEX=...  extra package index for torch; default PyTorch's for that build, on Linux
#
#   DT_TORCH=cpu bash scripts/setup.sh      # no CUDA, although there is a GPU
#   DT_TORCH=auto bash scripts/setup.sh     # look again, after a change of GPU or driver

# Other scripts source it: then $DT_PYTHON is the interpreter, and the first `python` on the PATH. Valid for bash 3.2.
# shellcheck shell=bash
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # for `sh scripts/setup.sh`

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
    "$1/bin/python" -c "$_DT_STAMP" "$DT_ROOT" "$_dt_torch" 2>/dev/null </dev/null
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

_dt_is_build() {
    case "$1" in cpu | mps | cu[0-9]* | rocm[0-9]*) ;; *) false ;; esac
}

# Sets _dt_torch: a build (cpu, cu130...) or what pip takes; _dt_how: `asked` by a person or `auto`; of what was looked
# for _dt_gpus and _dt_trouble. A build for a GPU is kept while nobody asks for another: one may have fallen off the bus.
_dt_choose() {
    local venv=$1 python=$2 asked=${DT_TORCH:-} kept answer
    kept=$(cat "$venv/.torch" 2>/dev/null) || kept=""
    _dt_how=auto _dt_torch="" _dt_gpus="" _dt_trouble=""
    case "$asked" in
        auto) kept="" ;;
        "") ;;
        torch | torch[=@\<\>~!\ ]* | */* | *.whl) kept="asked $asked" ;;
        *) _dt_is_build "$asked" || _dt_fail "DT_TORCH=$asked: expected auto, cpu, cu130, cu126, rocm7.2, or what pip takes (torch==2.13.0)"
            kept="asked $asked" ;;
    esac
    case "$kept" in
        "asked "* | "auto cu"* | "auto rocm"*) _dt_how=${kept%% *} _dt_torch=${kept#* } && return ;;
    esac
    answer=$("$python" -I "$DT_ROOT/distributed_training/devices.py" 2>/dev/null </dev/null) || answer=""
    { IFS= read -r _dt_torch && IFS= read -r _dt_gpus && IFS= read -r _dt_trouble; } <<<"$answer" || true
    _dt_is_build "$_dt_torch" || _dt_torch=cpu
}

_dt_check_platform() {
    local chosen=chosen
    if [ -z "$_dt_torch" ] || _dt_is_build "$_dt_torch"; then chosen=""; fi
    case "${chosen:+chosen }$(uname -sm)" in
        "chosen "* | "Linux x86_64" | "Linux aarch64" | "Darwin arm64") ;;
        *) _dt_fail "torch and hivemind have builds for Linux on x86_64 and aarch64 and for Macs with Apple silicon, not for $(uname -sm)" ;;
    esac
}

# The extra index that has this build of torch, if this machine wants one; fails if it cannot be reached.
_dt_torch_index() {
    if [ -n "${DT_TORCH_INDEX+set}" ]; then
        echo "$DT_TORCH_INDEX"
        return
    fi
    [ "$(uname -s)" = Linux ] && _dt_is_build "$_dt_torch" || return 0
    local index=https://download.pytorch.org/whl/$_dt_torch
    if "$1" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=10).close()' \
        "$index" >/dev/null 2>&1 </dev/null; then
        echo "$index"
    else
        return 1
    fi
}

# Sets index, torch and gb of _dt_install, and says what a build for a GPU costs.
_dt_plan_torch() {
    local download=""
    torch=$(grep '^torch==' "$DT_ROOT/constraints.txt")
    _dt_is_build "$_dt_torch" || torch=$_dt_torch
    case "$_dt_torch" in
        cu[0-9]*) gb=9 download="about 3 GB" ;;
        rocm*) gb=25 download="about 5 GB (an estimate)" ;;
    esac
    if index=$(_dt_torch_index "$1"); then
        [ -z "$download" ] || [ -z "$index" ] || torch="$torch+$_dt_torch"
    else
        case "$_dt_torch" in
            cpu) gb=9 && echo "note: PyTorch's CPU index cannot be reached; torch comes from pip's own index, perhaps with 3 GB of CUDA" >&2 ;;
            cu130) echo "note: PyTorch's index of $_dt_torch cannot be reached; torch comes from pip's own index, which has that build" >&2 ;;
            *) _dt_fail "PyTorch's index of $_dt_torch cannot be reached, or there is none; try again, or DT_TORCH=cpu bash scripts/setup.sh" ;;
        esac
    fi
    [ -z "$_dt_trouble" ] || echo "warning: torch comes for the CPU: $_dt_trouble" >&2
    [ -z "$download" ] ||
        echo "torch comes as $_dt_torch${_dt_gpus:+, for $_dt_gpus}: $download of download; DT_TORCH=cpu bash scripts/setup.sh does without."
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
    local venv=$1 began=$SECONDS kept torch index gb=2
    kept=$(cat "$venv/.torch" 2>/dev/null) || case "$_dt_torch" in mps) kept="auto mps" ;; *) kept="auto cpu" ;; esac
    if _dt_whole "$venv"; then
        _dt_plan_torch "$venv/bin/python"
        [ "${kept#* }" = "$_dt_torch" ] || _dt_check_room "$venv/bin/python" "$venv" "$gb"
        echo "Bringing $venv up to date."
        touch "$venv/.installing" 2>/dev/null || _dt_fail "$venv is out of date and cannot be written; set DT_VENV to another folder"
    else
        [ -n "${_dt_maker:-}" ] || _dt_find_python "$venv/.uv.$$" # another set-up broke it meanwhile
        kept=" $_dt_torch"
        _dt_plan_torch "$_dt_base"
        _dt_check_room "$_dt_base" "$venv" "$gb"
        echo "Installing into $venv: about $gb GB of disk; one to five minutes, most of it download (once)."
        touch "$venv/.installing" 2>/dev/null || _dt_fail "cannot write to $venv; set DT_VENV to a folder that can be written"
        _dt_make "$venv"
    fi
    rm -f "$venv/.stamp"
    mkdir -p "$venv/.tmp"
    _dt_constraints >"$venv/constraints.txt"
    "$venv/bin/python" -c "$_DT_REQUIREMENTS" "$DT_ROOT/pyproject.toml" >"$venv/requirements.txt"
    echo "  torch ($torch${index:+, from $index})"
    # pip takes one build of a version for another
    [ "${kept#* }" = "$_dt_torch" ] || "$venv/bin/python" -m pip uninstall --quiet --yes torch >/dev/null 2>&1 </dev/null || true
    # shellcheck disable=SC2086
    _dt_pip "$venv" torch ${index:+--extra-index-url "$index"} $torch
    echo "  everything else"
    _dt_pip "$venv" "the dependencies" -r "$venv/requirements.txt"
    rm -rf "$venv/.tmp" "$venv/.uv".* "$venv/pip.log"
    echo "$_dt_how $_dt_torch" >"$venv/.torch"
    _dt_stamp "$venv" >"$venv/.stamp"
    rm -f "$venv/.installing"
    echo "Installed in $((SECONDS - began)) s."
    case "$_dt_torch" in cu[0-9]* | rocm*) "$venv/bin/python" -c "$_DT_SEES" "$DT_ROOT" </dev/null || true ;; esac
}

_DT_SEES='import sys, torch
sys.path.insert(0, sys.argv[1])
from distributed_training.devices import no_gpu, seen_gpus, torch_here
why, fix = no_gpu(seen_gpus(), torch_here())
if torch.cuda.is_available(): print("torch", torch.__version__, "uses", torch.cuda.get_device_name(0))
else: print("warning: torch finds no GPU:", "; ".join(filter(None, (why, fix))) or "python -c \"import torch; torch.cuda.init()\" says why", file=sys.stderr)'

# Whose torch is not one of our builds must not have our pin of it in the way.
_dt_constraints() {
    if _dt_is_build "$_dt_torch"; then cat "$DT_ROOT/constraints.txt"; else grep -v '^torch==' "$DT_ROOT/constraints.txt"; fi
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
    _dt_choose "$venv" "$venv/bin/python"
    if ! _dt_ready "$venv"; then
        _dt_check_platform
        if ! _dt_whole "$venv"; then
            _dt_check_folder "$venv"
            _dt_find_python "$venv/.uv.$$"
        fi
        mkdir -p "$venv" 2>/dev/null || _dt_fail "cannot create $venv; set DT_VENV to a folder that can be written"
        _dt_lock "${_dt_base:-$venv/bin/python}" "$venv"
        _dt_choose "$venv" "${_dt_base:-$venv/bin/python}"
        _dt_ready "$venv" || _dt_install "$venv"
        exec 9<&-
    fi
    _dt_link "$venv"
    DT_PYTHON=$venv/bin/python
    # PYTHONPATH for what we start: an environment that two checkouts share may name the other one
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv" PYTHONPATH="$DT_ROOT"
}

# Run by a person, not sourced.
_dt_main() {
    set -euo pipefail
    local line
    case "$*" in
        "") _dt_setup && echo "Ready: $DT_PYTHON" ;;
        -h | --help)
            while IFS= read -r line && [ -n "$line" ]; do
                line=${line#\#} && echo "${line# }"
            done <"$DT_ROOT/scripts/setup.sh"
            ;;
        *) _dt_fail "setup.sh takes no arguments but --help; what it does is chosen by variables: see there" ;;
    esac
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then _dt_main "$@"; else _dt_setup; fi
