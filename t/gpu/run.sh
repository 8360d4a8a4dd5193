#!/bin/sh
# Tests, sanitizers and benchmark of the CUDA kernels as one command, on a
# machine with a card: needs the bundle (make gpu-bundle) and nothing else.
# Logs go to $OUT (default: build/gpu/out).
#
#     t/gpu/run.sh [tests] [sanitize] [bench]     all three without arguments
set -u
here=$(cd "$(dirname "$0")" && pwd)
case $here in
    */t/gpu) bin=$here/../../build/gpu ;;
    *) bin=$here ;;
esac
out=${OUT:-$bin/out}
mkdir -p "$out"
bad=0
parts=${*:-tests sanitize bench}

sanitize() {    # tool, arch
    for program in glm-gputest glm-prefilltest glm-gpusample; do
        sanitize_one "$1" "$2" $program
    done
}

sanitize_one() {    # tool, arch, program
    log=$out/$1-$2-$3.log
    if compute-sanitizer --tool "$1" --error-exitcode 9 \
        "$bin/$3" --small --arch "$2" >"$log" 2>&1
    then
        echo "ok - compute-sanitizer $1 sm_$2 $3"
    else
        echo "not ok - compute-sanitizer $1 sm_$2 $3"
        grep -m8 -E '=====|^not ok|Bail' "$log"
        bad=1
    fi
}

for part in $parts; do
    case $part in
    tests)
        for program in glm-gputest glm-prefilltest glm-gpusample; do
            "$bin/$program" >"$out/$program.log" 2>&1 || bad=1
            grep -E '^(#|not ok|Bail|1\.\.)' "$out/$program.log"
            grep -E 'error|worst' "$out/$program.log"
        done
        ;;
    sanitize)
        if command -v compute-sanitizer >/dev/null; then
            sanitize memcheck 80
            sanitize memcheck 90
            # racecheck does not follow bulk copies: the sm_80 kernels only.
            sanitize racecheck 80
            sanitize synccheck 80
        else
            echo "ok - compute-sanitizer # SKIP not installed"
        fi
        ;;
    bench)
        "$bin/gpubench" >"$out/bench.log" 2>&1 || bad=1
        cat "$out/bench.log"
        ;;
    esac
done
[ $bad = 0 ] && echo "gpu: all passed" || echo "gpu: FAILED"
exit $bad
