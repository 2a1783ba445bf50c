#!/usr/bin/env bash
# Fetch and unpack the sample data (buildings almena and albertville) into data/.
#
#   XTC_MIRROR=https://host/folder tools/download_data.sh [FOLDER]
#
# python -m scripts.download --help says what the mirror has to hold.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m scripts.download data "$@"
