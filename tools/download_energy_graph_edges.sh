#!/usr/bin/env bash
# Fetch the checkpoints of the consistency energy into models/.
#
#   XTC_MIRROR=https://host/folder tools/download_energy_graph_edges.sh [FOLDER]
#
# python -m scripts.download --help says what the mirror has to hold.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m scripts.download energy_graph_edges "$@"
