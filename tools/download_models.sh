#!/usr/bin/env bash
# Fetch the published checkpoints into models/.
#
#   XTC_MIRROR=https://host/folder tools/download_models.sh [FOLDER]
#
# The mirror holds the files under their published names (transfers.py lists them). This
# project knows no address that is certain to be alive, so it names none of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-models}
if [ -z "${XTC_MIRROR:-}" ]; then
  cat >&2 <<'TEXT'
error: set XTC_MIRROR to the address of a folder with the published checkpoints, e.g.
  XTC_MIRROR=https://host/models tools/download_models.sh
Without one: python -m scripts.train_edges CONFIG trains the networks on your own data,
and the shipped rooms networks are used where nothing else is chosen.
TEXT
  exit 2
fi
mkdir -p "$folder"
names=$(.venv/bin/python -c '
from transfers import TRANSFERS
rows = [row.checkpoint for row in TRANSFERS.values() if row.trainable]
tasks = [f"rgb2{task}_consistency.pth" for task in ("normal", "depth", "reshading")]
print(*dict.fromkeys([*rows, *tasks, "rgb2depth_baseline.pth"]))')
for name in $names; do
  if [ -s "$folder/$name" ]; then
    echo "$name: there already"
    continue
  fi
  curl --fail --location --retry 3 --continue-at - --output "$folder/$name.part" "$XTC_MIRROR/$name"
  mv "$folder/$name.part" "$folder/$name"
done
