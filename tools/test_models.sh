#!/bin/sh
# Converts the checkpoints that tests load into $1/models.  glm-tiny-random (42
# MB) is not in the repository: tests that want it skip where it is absent.
set -eu

B=$1
mkdir -p "$B/models"

convert() {     # source directory, name, further options
    [ -d "$1" ] || return 0
    [ ! -f "$B/models/$2/config.json" ] || [ "$B/glm-convert" -nt "$B/models/$2/config.json" ] || return 0
    rm -rf "$B/models/$2"
    from=$1 name=$2
    shift 2
    "$B/glm-convert" "$from" "$B/models/$name" --config "$(dirname "$from")/config.json" "$@" \
        >"$B/models/$name.log" 2>&1 || { cat "$B/models/$name.log" >&2; exit 1; }
}

for tp in tp1 tp2 tp4; do
    convert t/data/glm-mini-random/$tp mini-$tp
done
for type in int8 int4; do
    convert t/data/glm-mini-random/tp1 mini-$type-tp1 --quant $type
    convert t/data/glm-mini-random/$type-tp2 mini-$type-tp2
done
convert t/data/glm-mini-random/tp1 mini-int4-g32 --quant int4-g32
for tp in tp1 tp2; do
    convert ../shared/reference/glm-tiny-random/$tp tiny-$tp
done
