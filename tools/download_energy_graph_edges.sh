#!/usr/bin/env bash
# Fetch the checkpoints of the consistency energy into models/.
#
#   tools/download_energy_graph_edges.sh [FOLDER]
#
# The publisher's address is tried first, then XTC_MIRROR: see python -m scripts.download --help.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m scripts.download energy_graph_edges "$@"
