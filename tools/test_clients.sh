#!/bin/sh
# Runs clients from PyPI, unchanged, against the server with the demo model; the
# last line counts their checks.  Their venvs stay in build/.
set -eu

B=${B-build}
MAKE=${MAKE-make}

$MAKE B="$B" all
GLM_TEST_LIMIT=7200 TESTS=t/clients/clients.t exec perl tools/test.pl "$B"
