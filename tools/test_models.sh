#!/bin/sh
# Converts the checkpoints that tests load into $1/models.  glm-tiny-random (42
# MB) is not in the repository: tests that want it skip where it is absent.
set -eu

B=$1
mkdir -p "$B/models"

convert() {     # source directory, name
    [ -d "$1" ] || return 0
    [ ! -f "$B/models/$2/config.json" ] || [ "$B/glm-convert" -nt "$B/models/$2/config.json" ] || return 0
    rm -rf "$B/models/$2"
    "$B/glm-convert" "$1" "$B/models/$2" --config "$(dirname "$1")/config.json" >"$B/models/$2.log" 2>&1 \
        || { cat "$B/models/$2.log" >&2; exit 1; }
}

for tp in tp1 tp2 tp4; do
    convert t/data/glm-mini-random/$tp mini-$tp
done
for tp in tp1 tp2; do
    convert ../shared/reference/glm-tiny-random/$tp tiny-$tp
done
