#!/bin/sh
# Builds ngx_http_glm_module.so against an nginx source or header tree.
#
#   tools/build_module.sh BUILD_DIR
#
# NGX_SRC  the tree (default: Debian's nginx-dev, /usr/share/nginx/src)
# SAN      extra flags for compiler and linker, as -fsanitize=address,undefined
#
# Configures once; later runs compile what changed and are quick otherwise.
# nginx's configure cannot take a path with a space, so it sees this tree
# and the build folder through links in a folder of its own.

set -eu

[ $# -eq 1 ] || { echo "usage: $0 BUILD_DIR" >&2; exit 2; }

src=${NGX_SRC:-/usr/share/nginx/src}
top=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
objs=$out/nginx-objs

[ -x "$src/configure" ] || {
    echo "$0: no $src/configure (package nginx-dev)" >&2
    exit 1
}

# what a configured build folder depends on
key=$(cat "$src/conf_flags" "$src/src/core/nginx.h" "$top/config" "$0" \
      2>/dev/null | cksum; echo "$src ${CC:-cc} ${SAN:-}")

link=
cleanup() { [ -z "$link" ] || rm -rf "$link"; }
trap cleanup EXIT
trap 'exit 130' INT TERM

make_links() {
    ln -s "$top" "$link/top"
    ln -s "$objs" "$link/objs"
}

# The folder's name is part of what configure wrote: take the same one again,
# or configure anew under another.
if [ -f "$objs/key" ] && [ "$(cat "$objs/key")" = "$key" ] \
   && [ -f "$objs/link" ] && mkdir -m 700 "$(cat "$objs/link")" 2>/dev/null
then
    link=$(cat "$objs/link")
    make_links

else
    rm -rf "$objs"
    mkdir -p "$objs"
    # no dot in it: nginx's scripts take ".c" or ".S" anywhere for a suffix
    link=$(mktemp -d /tmp/glm-module-XXXXXX)
    make_links

    # conf_flags is Debian's, an array of bash; plain nginx has none.  nginx
    # itself adds -W -Wall -Werror, after its tests for features.
    (cd "$src" && LINK=$link SAN=${SAN:-} CC=${CC:-cc} bash -c '
        NGX_CONF_FLAGS=( --with-compat )
        [ ! -f conf_flags ] || . ./conf_flags
        ./configure --with-cc="$CC" \
            --with-cc-opt="-g -O2 -fPIC -fno-omit-frame-pointer $SAN" \
            --with-ld-opt="-fPIC $SAN" \
            "${NGX_CONF_FLAGS[@]}" \
            --builddir="$LINK/objs" \
            --add-dynamic-module="$LINK/top"
    ') > "$out/nginx-configure.log" 2>&1 || {
        tail -20 "$out/nginx-configure.log" >&2
        exit 1
    }

    printf '%s' "$link" > "$objs/link"
    printf '%s' "$key" > "$objs/key"
fi

# options and variables of an outer make are not for nginx's
unset MAKEFLAGS MFLAGS MAKELEVEL
make -s -j"$(nproc)" -f "$link/objs/Makefile" -C "$src" modules

so=$objs/ngx_http_glm_module.so
if ! cmp -s "$so" "$out/ngx_http_glm_module.so"; then
    cp "$so" "$out/ngx_http_glm_module.so.tmp"
    mv "$out/ngx_http_glm_module.so.tmp" "$out/ngx_http_glm_module.so"
fi
