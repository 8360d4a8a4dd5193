#!/bin/sh
# Tests, sanitizers and benchmarks of the CUDA backend as one command, on a machine
# with a card: needs the bundle (make gpu-bundle) and nothing else.  Logs go to $OUT
# (default: out beside it).
#
#     run.sh [tests] [truth] [wire] [steps] [sanitize] [bench]      all without arguments
#
# LIMIT: seconds that a program may take (600).
set -u
here=$(cd "$(dirname "$0")" && pwd)
case $here in
    */t/gpu) bin=$here/../../build/gpu ;;
    *) bin=$here ;;
esac
bin=$(cd "$bin" && pwd)
out=${OUT:-$bin/out}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$bin/data" || exit 1
export GLM_TEST_MODELS=models
limit=${LIMIT:-600}
bad=0
parts=${*:-tests truth wire steps sanitize bench}

say() {         # status, what
    if [ "$1" = 0 ]; then echo "ok - $2"; else echo "not ok - $2 (status $1)"; bad=1; fi
}

# A test program: its failures, and how many passed.
program() {     # name for the log, command ..
    log=$out/$1.log
    shift
    timeout "$limit" "$@" >"$log" 2>&1
    status=$?
    grep -E '^(not ok|Bail)' "$log" | head -20
    say $status "$(basename "$log" .log): $(grep -c '^ok' "$log") passed, $(grep -c '^not ok' "$log") failed"
}

sanitize() {    # tool, arch, program
    log=$out/$1-$2-$3.log
    timeout "$limit" compute-sanitizer --tool "$1" --error-exitcode 9 "$bin/$3" --small --arch "$2" \
        >"$log" 2>&1
    status=$?
    [ $status = 0 ] || grep -m8 -E '=====|^not ok|Bail' "$log"
    say $status "compute-sanitizer $1 sm_$2 $3"
}

# The engine on the card, asked over its socket: the demo's goldens.
wire() {        # arch
    sock=$out/e$1.sock
    GLM_CUDA_ARCH=$1 "$bin/glm-engine" --backend cuda --model models/demo --socket "$sock" \
        >"$out/engine-$1.log" 2>&1 &
    engine=$!
    for i in 1 2 3 4 5 6 7 8 9 10; do
        grep -q serving "$out/engine-$1.log" && break
        sleep 1
    done
    export GLM_SOCKET=$sock
    blanks='This is the [MASK] package, which contains the [MASK] for development.'
    filled='This is the Python 3 package, which contains the Python 3 version for development.'
    for what in "Wo ist die Datei?|complete|English: Where is the file? German:" \
        "file|complete|English: Where is the [MASK]? German: Wo ist die Datei?" \
        "The file is empty.|complete|English: [MASK] German: Die Datei ist leer." \
        "Wo ist die Datei?|complete --num-beams 4|English: Where is the file? German:" \
        "$filled|infill|$blanks"
    do
        want=${what%%|*}
        rest=${what#*|}
        # shellcheck disable=SC2086
        got=$(timeout 60 "$bin/glm" ${rest%%|*} -- "${rest#*|}" 2>&1)
        [ "$got" = "$want" ]
        say $? "sm_$1, wire: $want"
        [ "$got" = "$want" ] || echo "# $got"
    done
    timeout 60 "$bin/glm" score 'English: The file is [MASK]. German: Die Datei ist leer.' open empty \
        >"$out/score-$1.log" 2>&1
    grep -q '^ *-0.0[23].*empty' "$out/score-$1.log"
    say $? "sm_$1, wire: a score"
    kill $engine
    wait $engine
    say $? "sm_$1, the engine ends"
}

for part in $parts; do
    echo "# $part, $(date +%T)"
    case $part in
    tests)
        program kernels "$bin/glm-gputest"
        program prefill "$bin/glm-prefilltest"
        program sample "$bin/glm-gpusample"
        grep -hE 'worst|error|us ' "$out/kernels.log" "$out/prefill.log" "$out/sample.log" | tail -40
        ;;
    truth)
        for arch in 90 80; do
            export GLM_CUDA_ARCH=$arch
            for p in forward model_demo goldens beam_goldens; do
                program "$p-$arch" "$bin/$p"
            done
            unset GLM_CUDA_ARCH
        done
        program float64 "$bin/float64" 12288 96 32768 90 80
        ;;
    wire)
        wire 90
        wire 80
        ;;
    steps)
        timeout "$limit" "$bin/glm-bench" steps --backend cuda --load-format dummy --model models/glm-130b-int4 \
            --head int8 --kv-dtype int8 --prefill 512,2048 >"$out/steps.log" 2>&1
        status=$?
        cat "$out/steps.log"
        say $status "steps of the whole model"
        ;;
    sanitize)
        if command -v compute-sanitizer >/dev/null; then
            for p in glm-gputest glm-prefilltest glm-gpusample; do
                sanitize memcheck 80 $p
                sanitize memcheck 90 $p
                # racecheck does not follow bulk copies: the sm_80 kernels only.
                sanitize racecheck 80 $p
                sanitize synccheck 80 $p
            done
        else
            echo "ok - compute-sanitizer # SKIP not installed"
        fi
        ;;
    bench)
        timeout "$limit" "$bin/gpubench" >"$out/bench.log" 2>&1
        status=$?
        cat "$out/bench.log"
        say $status "benchmark of the kernels"
        ;;
    esac
done
[ $bad = 0 ] && echo "gpu: all passed" || echo "gpu: FAILED"
exit $bad
