#!/usr/bin/env bash
# Fetch and unpack the sample data (buildings almena and albertville) into data/.
#
#   tools/download_data.sh [FOLDER]
#
# The publisher's address is tried first, then XTC_MIRROR: see python -m scripts.download --help.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m scripts.download data "$@"
