#!/bin/sh
# Builds and runs every test; the last line counts them.  TESTS='t/glm_conf.t
# build/t/ring' runs only these, without the sanitizer passes.
set -eu

B=${B-build}
MAKE=${MAKE-make}
ASAN='-fsanitize=address,undefined -fno-sanitize-recover=undefined'

$MAKE B="$B" tests
tools/test_models.sh "$B"

if [ -z "${TESTS-}" ]; then
    $MAKE B="$B/asan" SAN="$ASAN" OPT=-O1 GLM_CUDA=0 tests
    $MAKE B="$B/tsan" SAN=-fsanitize=thread OPT=-O1 GLM_CUDA=0 \
        $(for t in $(grep -v '^#' t/tsan.list); do echo "$B/tsan/t/$t"; done)
fi

exec perl tools/test.pl "$B"
