#!/bin/sh
# Installs the Debian packages that are missing for: build | test | check | fuzz.
# Does nothing, and needs no root, when all are there.
set -eu

packages="gcc make libc6-dev libjansson-dev libzip-dev zlib1g-dev nginx nginx-dev"
case "${1-build}" in
    build) ;;
    test)  packages="$packages perl python3 python3-venv python3-yaml curl" ;;
    check) packages="$packages cppcheck" ;;
    fuzz)  packages="$packages clang libclang-rt-14-dev" ;;
    *)     echo "usage: $0 build|test|check|fuzz" >&2; exit 2 ;;
esac

missing=
for p in $packages; do
    dpkg-query -W -f='${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "missing:$missing; install them, this machine has no apt-get" >&2
    exit 1
fi
sudo=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "missing:$missing; run as root or install sudo" >&2; exit 1; }
    sudo=sudo
fi

# A freshly installed nginx must not start and take port 80.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap '$sudo rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
    $sudo chmod 755 $policy
fi

echo "installing:$missing"
$sudo apt-get update -q
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -q --no-install-recommends $missing
