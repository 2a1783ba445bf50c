#!/usr/bin/env bash
# Fetch Taskonomy's own networks into models/.
#
#   tools/download_taskonomy.sh [FOLDER]
#
# The publisher's address is tried first, then XTC_MIRROR: see python -m scripts.download --help.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m scripts.download taskonomy "$@"
