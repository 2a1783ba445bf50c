#!/usr/bin/env bash
# Fetch Omnidata's U-Net for normals into models/.
#
#   tools/download_omnidata.sh [FOLDER]
#
# The publisher's address is tried first, then XTC_MIRROR: see python -m scripts.download --help.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m scripts.download omnidata "$@"
