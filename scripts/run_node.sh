# A node as a service of this machine; run_miner.sh, run_validator.sh and run_owner.sh call it with their role first.
# Under pm2 where that is installed ($PM2, or on the PATH), which starts a node again that fails; else in the background,
# where nothing does. Valid for bash 3.2.
# shellcheck shell=bash
set -euo pipefail
umask 077

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
STOP_S=20 # a node leaves within 15 s

fail() {
    echo "error: $*" >&2
    exit 2
}

usage() {
    cat <<EOF
usage: bash scripts/run_$ROLE.sh COMMAND [--env FILE] [-- OPTIONS OF THE NODE]

  doctor      look whether a node can run here, and say what mends what is wrong
  start       start it in the background
  stop        end it; it leaves politely, within 15 s, and goes on where it was when it is started again
  restart     the two of them
  status      its round, weight, last fault; is it me, the run, or the chain
  logs        follow its log; Ctrl-C ends that, not the node
  update      look for a newer signed release; a node with DT_AUTO_UPDATE=1 takes it at the end of its round
  foreground  run it here, as a supervisor of your own would

Settings come from FILE (default .env in the checkout, made from .env.example; -: from the environment alone); what
follows -- wins over them.

examples:
  cp .env.example .env && chmod 600 .env      # and edit it: netuid, wallet, hotkey, port
  bash scripts/run_$ROLE.sh start
  bash scripts/run_$ROLE.sh start --env .env.second      # another node on this machine: its own hotkey and port
  bash scripts/run_$ROLE.sh foreground -- --logging.debug
EOF
}

# NAME=VALUE lines, as docker and systemd read them too: # comments, values bare or in quotes, nothing expanded.
read_env() {
    local line number=0 name value
    [ -r "$ENV_FILE" ] || fail "$ENV_FILE cannot be read; make it: cp .env.example $ENV_FILE, and edit it"
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        line=${line%$'\r'}
        line=${line#"${line%%[![:space:]]*}"}
        line=${line%"${line##*[![:space:]]}"}
        case "$line" in "" | \#*) continue ;; esac
        name=${line%%=*} value=${line#*=}
        case "$line" in *=*) ;; *) fail "$ENV_FILE:$number: expected NAME=VALUE, got '$line'" ;; esac
        case "$name" in "" | [0-9]* | *[!A-Za-z0-9_]*) fail "$ENV_FILE:$number: '$name' is no name of a variable" ;; esac
        case "$value" in \"*\" | \'*\') value=${value:1:${#value}-2} ;; esac
        export "$name=$value"
    done <"$ENV_FILE"
    # shellcheck disable=SC2012
    case "$(ls -ln "$ENV_FILE")" in
        ?????r* | ???????r*)
            [ -z "${BT_WALLET_PASSWORD:-}${HF_TOKEN:-}${WANDB_API_KEY:-}" ] ||
                echo "warning: others on this machine can read the secrets in $ENV_FILE: chmod 600 $ENV_FILE" >&2
            ;;
    esac
}

find_python() {
    PYTHON=${DT_VENV:-$ROOT/.venv}
    case "$PYTHON" in /*) ;; *) PYTHON=$ROOT/$PYTHON ;; esac
    PYTHON=$PYTHON/bin/python
    [ -x "$PYTHON" ] || fail "there is no $PYTHON; make it: bash scripts/setup.sh"
    export PYTHONPATH="$ROOT"
}

program() {
    case "${DT_AUTO_UPDATE:-}" in
        1 | true | yes | on) echo "$PYTHON" scripts/launch.py "$ROLE" ;;
        *) echo "$PYTHON" "neurons/$ROLE.py" ;;
    esac
}

# What the node itself would refuse first is said here, and not only in a log.
check() {
    "$PYTHON" - "$ROLE" "$@" <<'EOF'
import sys
from distributed_training.settings.entry import run_main

def check():
    from distributed_training.preflight import prepare
    from distributed_training.protocol.types import Role
    prepare(Role[sys.argv[1].upper()], sys.argv[2:])
    return 0

sys.exit(run_main(check))
EOF
}

# --- with pm2

in_pm2() { "$PM2" describe "$NAME" >/dev/null 2>&1; }

pm2_start() {
    local arguments
    arguments=$(printf '%s\n' "$@")
    in_pm2 && "$PM2" delete "$NAME" >/dev/null # a new environment or other options count from now on
    ROLE=$ROLE ENV_FILE=$ENV_FILE NODE_ARGUMENTS=$arguments "$PM2" start "$ROOT/scripts/pm2/ecosystem.config.js" >/dev/null
    echo "$NAME runs under pm2; at every start of this machine: $PM2 startup, then $PM2 save"
}

# --- without

alive() { [ -s "$PID_FILE" ] && kill -0 "$(cat "$PID_FILE")" 2>/dev/null && holds_lock; }

# The number of a process that ended may be another one's by now.
holds_lock() { ! "$PYTHON" -c 'import fcntl, sys
fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)' "$PID_FILE.lock" 2>/dev/null; }

bare_start() {
    ! alive || fail "$NAME runs already, as process $(cat "$PID_FILE")"
    mkdir -p "$STATE"
    # The lock lives as long as the node: descriptor 9 is the node's.
    "$PYTHON" -c 'import fcntl, os, sys
os.setsid()
os.set_inheritable(9, True)
fcntl.flock(9, fcntl.LOCK_EX)
os.execv(sys.argv[1], sys.argv[1:])' "${COMMAND[@]}" "$@" </dev/null >>"$LOG" 2>&1 9>"$PID_FILE.lock" &
    echo $! >"$PID_FILE"
    disown
    echo "$NAME runs in the background as process $(cat "$PID_FILE"); nothing starts it again when it fails (install pm2 for that)"
}

bare_stop() {
    local pid left=$((STOP_S * 10))
    alive || { echo "$NAME does not run" && return; }
    pid=$(cat "$PID_FILE")
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null && [ $left -gt 0 ]; do
        sleep 0.1
        left=$((left - 1))
    done
    [ $left -gt 0 ] || kill -9 "$pid" 2>/dev/null || true
    rm -f "$PID_FILE"
    echo "$NAME has stopped"
}

main() {
    local command role=$1
    shift
    command=${1:-}
    [ $# = 0 ] || shift
    ENV_FILE=$ROOT/.env
    while [ $# -gt 0 ]; do
        case "$1" in
            --env)
                [ $# -gt 1 ] || fail "--env needs a FILE"
                case "$2" in - | /*) ENV_FILE=$2 ;; *) ENV_FILE=$PWD/$2 ;; esac
                shift 2
                ;;
            --)
                shift
                break
                ;;
            *) fail "unexpected argument '$1'; options of the node follow --" ;;
        esac
    done
    case "$command" in
        "" | -h | --help | help) ROLE=$role && usage && exit 0 ;;
        doctor | start | stop | restart | status | logs | update | foreground) ;;
        *) fail "unknown command '$command'; one of: doctor, start, stop, restart, status, logs, update, foreground" ;;
    esac
    unset ROLE
    [ "$ENV_FILE" = - ] || read_env
    [ "${ROLE:-$role}" = "$role" ] || fail "$ENV_FILE says ROLE=$ROLE; that is bash scripts/run_$ROLE.sh"
    ROLE=$role
    cd "$ROOT"
    find_python
    IFS=' ' read -r -a COMMAND <<<"x $(program)"
    COMMAND=("$PYTHON" "${COMMAND[@]:2}") # a path may hold spaces
    NAME=$ROLE-${DT_WALLET_HOTKEY:-default} STATE=$ROOT/runs/services
    PID_FILE=$STATE/$NAME.pid LOG=$STATE/$NAME.log
    PM2=${PM2:-$(command -v pm2 || true)}
    "do_$command" "$@"
}

do_doctor() { exec "$PYTHON" -m distributed_training.doctor --role "$ROLE" "$@"; }
do_status() { exec "$PYTHON" -m distributed_training.status "$@"; }
do_update() { exec "$PYTHON" scripts/launch.py --update "$ROLE" "$@"; }
do_foreground() { exec "${COMMAND[@]}" "$@"; }

do_start() {
    if [ -n "$PM2" ]; then
        "$PM2" stop "$NAME" >/dev/null 2>&1 || true
        check "$@" && pm2_start "$@"
    else
        alive || check "$@"
        bare_start "$@"
    fi
}

do_stop() {
    if [ -n "$PM2" ] && in_pm2; then "$PM2" delete "$NAME" >/dev/null && echo "$NAME has stopped"; else bare_stop; fi
}

do_restart() {
    do_stop
    do_start "$@"
}

do_logs() {
    if [ -n "$PM2" ] && in_pm2; then exec "$PM2" logs "$NAME" "$@"; else exec tail -n 50 -F "$LOG"; fi
}

main "$@"
