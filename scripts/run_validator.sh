#!/usr/bin/env bash
# bash scripts/run_validator.sh start|stop|restart|status|logs|update|doctor|foreground [--env FILE] [-- OPTIONS]; alone: help
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run_node.sh" validator "$@"
