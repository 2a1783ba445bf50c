#!/usr/bin/env bash
# Fetch the checkpoints of the perceptual losses into models/.
#
#   XTC_MIRROR=https://host/folder tools/download_percep_models.sh [FOLDER]
#
# python -m scripts.download --help says what the mirror has to hold.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m scripts.download percep_models "$@"
