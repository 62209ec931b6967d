# Sourced by setup.sh: which Python makes the environment. The newest fitting one on the PATH; else a private one that
# uv fetches; else one line that says what to do on this system. Valid for bash 3.2, the one of macOS.
# shellcheck shell=bash

_DT_WANTED="Python 3.11 to 3.14"
_DT_NAMES="python3.14 python3.13 python3.12 python3.11 python3 python"
_DT_FETCHED=3.13 # what uv fetches where none fits
_DT_NEWLINE=$'\n'
_DT_PIP_ENV="PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_TARGET= PIP_PREFIX=" # settings of a person that break pip here

# Prints "VERSION VERDICT EXECUTABLE", the executable outside of any environment; must run on every Python, 2.7 too.
_DT_JUDGE='import sys, sysconfig
verdict = "fits"
if not (3, 11) <= sys.version_info[:2] <= (3, 14): verdict = "unsupported"
elif sys.implementation.name != "cpython": verdict = sys.implementation.name
elif sys.maxsize < 2**32: verdict = "32-bit"
elif sysconfig.get_config_var("Py_GIL_DISABLED"): verdict = "free-threaded"
elif "musl" in (sysconfig.get_config_var("SOABI") or ""): verdict = "musl"
else:
    try: import ensurepip, venv
    except ImportError: verdict = "bare"
print("%d.%d %s %s" % (sys.version_info[:2] + (verdict, getattr(sys, "_base_executable", None) or sys.executable)))'

# Every Python on the PATH by one of the names, one a line, the first on the PATH first; with PYTHON only that one.
_dt_pythons() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        type -aP "$PYTHON" || true
    else
        for name in $_DT_NAMES; do type -aP "$name" || true; done
    fi
}

# Sets _dt_base and _dt_verdict (fits, bare: it lacks the venv module, or why not) of the best one on the PATH.
_dt_look() {
    local path answer version verdict rank best=0
    _dt_base="" _dt_verdict=""
    while IFS= read -r path; do
        answer=$("$path" -c "$_DT_JUDGE" 2>/dev/null </dev/null) || continue
        version=${answer%% *} answer=${answer#* }
        verdict=${answer%% *}
        case "$verdict" in
            fits) rank=$((200 + ${version#3.})) ;;
            bare) rank=$((100 + ${version#3.})) ;;
            *) rank=1 ;;
        esac
        if [ "$rank" -gt "$best" ]; then
            best=$rank _dt_base=${answer#* } _dt_verdict=$verdict
            [ "$rank" != 1 ] || _dt_verdict="Python $version ($verdict)"
        fi
    done <<<"$(_dt_pythons)"
}

# The newest version of a package that apt would install, nothing if there is none.
_dt_apt_candidate() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null | while read -r key value; do
        if [ "$key" = Candidate: ] && [ "$value" != "(none)" ]; then echo "$value"; fi
    done
}

# What to do about a missing Python here: by the package manager that is here, and for apt by what it knows.
_dt_hint() {
    local sudo="sudo " package
    [ "$EUID" != 0 ] || sudo=""
    if command -v apt-cache >/dev/null; then
        for package in python3-venv python3.14-venv python3.13-venv python3.12-venv python3.11-venv; do
            case "$(_dt_apt_candidate $package)" in
                3.1[1-4][.-]*) echo "run: ${sudo}apt install $package" && return ;;
            esac
        done
        if [ -z "$(_dt_apt_candidate python3-venv)" ]; then
            echo "apt has no list of packages yet, run: ${sudo}apt update; then this again" && return
        fi
    elif command -v dnf >/dev/null; then
        echo "run: ${sudo}dnf install python3.12" && return # of Fedora, RHEL 8 and later, Amazon Linux 2023
    elif command -v pacman >/dev/null; then
        echo "run: ${sudo}pacman -S uv; then this again, and uv fetches one" && return
    elif command -v zypper >/dev/null; then
        echo "run: ${sudo}zypper install python313 (Leap 15: python311)" && return
    elif command -v brew >/dev/null; then
        echo "run: brew install python@3.13" && return
    fi
    echo "install one with its venv module or uv (https://docs.astral.sh/uv), or set PYTHON=/path/to/python"
}

# Sets _dt_uv: the uv on the PATH, else one that the pip of any Python here puts into FOLDER; fails if there is none.
_dt_find_uv() {
    local folder=$1 path
    _dt_uv=$(command -v uv) && return
    while IFS= read -r path; do
        if "$path" -m pip --version >/dev/null 2>&1 </dev/null; then
            echo "  uv, by pip of $path (about 25 MB)"
            # shellcheck disable=SC2086
            env $_DT_PIP_ENV "$path" -m pip install --quiet --no-input --disable-pip-version-check --retries 1 \
                --target "$folder" uv >/dev/null 2>&1 </dev/null || true
            _dt_uv=$folder/bin/uv
            "$_dt_uv" --version >/dev/null 2>&1 && return
        fi
    done <<<"$(PYTHON="" _dt_pythons)"
    return 1
}

# Prints a private Python that uv has or fetches, or uv's last words on stderr.
_dt_fetch_python() {
    local said
    "$_dt_uv" python find --no-python-downloads ">=3.11,<3.15" 2>/dev/null </dev/null && return
    said=$(UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-30} "$_dt_uv" python install $_DT_FETCHED 2>&1 </dev/null) &&
        "$_dt_uv" python find $_DT_FETCHED </dev/null && return
    said=${said##*"$_DT_NEWLINE"}
    echo "${said#"${said%%[! ]*}"}" >&2 # its last line, without the indent
    return 1
}

# Sets _dt_base, the Python to make the environment of, and _dt_maker, what makes it: venv, virtualenv or uv.
# FOLDER may hold a uv for the time of the set-up. Fails with one line that says what to do.
_dt_find_python() {
    local folder=$1 said
    _dt_look
    case "$_dt_verdict" in
        fits) _dt_maker=venv && return ;;
        bare)
            if command -v virtualenv >/dev/null; then
                _dt_maker=virtualenv && return
            elif _dt_find_uv "$folder"; then
                echo "$_dt_base has no venv module: uv makes the environment."
                _dt_maker=uv && return
            fi
            _dt_fail "$_dt_base has no venv module; $(_dt_hint)"
            ;;
    esac
    [ -z "${PYTHON:-}" ] ||
        _dt_fail "PYTHON=$PYTHON is ${_dt_verdict:-nothing that runs}, not an ordinary 64-bit CPython 3.11 to 3.14; unset it or name one"
    if [[ $_dt_verdict == *"(musl)" ]] || command -v apk >/dev/null; then
        _dt_fail "torch has no builds for the C library of this system (musl); use one with glibc, such as Debian, or a container of it"
    fi
    _dt_maker=venv
    if _dt_find_uv "$folder"; then
        echo "No $_DT_WANTED here. Fetching a private CPython $_DT_FETCHED: about 35 MB from uv's builds on GitHub, 120 MB of disk in"
        echo "  $("$_dt_uv" python dir 2>/dev/null). Nothing of this system is changed."
        if said=$(_dt_fetch_python 2>&1); then
            _dt_base=$said && return
        fi
        rm -rf "$folder"
        _dt_fail "no $_DT_WANTED here and uv could not fetch one (${said:-it gave no reason}); $(_dt_hint)"
    fi
    _dt_fail "no $_DT_WANTED here; $(_dt_hint)"
}
