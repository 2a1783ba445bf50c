#!/usr/bin/env bash
# Fetch and unpack the sample data (buildings almena and albertville) into data/.
#
#   XTC_MIRROR=https://host/folder tools/download_data.sh [FOLDER]
#
# python -m scripts.download --help says what the mirror has to hold.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m scripts.download data "$@"
