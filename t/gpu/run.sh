#!/bin/sh
# Tests, sanitizers and benchmarks of the CUDA backend as one command, on a machine
# with a card: needs the bundle (make gpu-bundle) and nothing else.  Each part's output
# is $OUT/PART.txt (default: out beside the bundle), each program's a log there.
#
#     run.sh [tests] [truth] [wire] [faults] [steps] [load] [sanitize] [bench] [table]   all without
#
# load writes a model of 19 GB beside the bundle, or to LOAD_DIR, and takes it away.
# table is of what steps, load and bench left in $OUT.  The status tells of correctness
# alone.  All parts take less than ten minutes.
# LIMIT: seconds that a program may take (300).
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
limit=${LIMIT:-300}
failed=$out/failed              # what is not ok, a line each: parts are processes
: >"$failed"
model=models/glm-130b-int4      # shapes alone: its weights are dummies
h100=84462796800                # bytes that an H100 80GB lets one process have

say() {         # status, what
    if [ "$1" = 0 ]; then echo "ok - $2"; else echo "not ok - $2 (status $1)" | tee -a "$failed"; fi
}

count() {       # pattern, log
    grep -cE "$1" "$2"
}

# A test program: its failures, and how many passed.
program() {     # name for the log, command ..
    log=$out/$1.log
    shift
    timeout "$limit" "$@" >"$log" 2>&1
    status=$?
    if [ $status = 0 ]; then      # an early end, and a program that found no card
        grep -qE '^1\.\.' "$log" || status=plan
        grep -q '^1\.\.0' "$log" && status=skipped
    fi
    grep -E '^(not ok|Bail)' "$log" | head -20
    say $status "$(basename "$log" .log): $(count '^ok' "$log") passed, $(count '^ok.*# SKIP' "$log") of them \
skipped, $(count '^not ok' "$log") failed"
}

tests() {
    program kernels "$bin/glm-gputest"
    program prefill "$bin/glm-prefilltest"
    program sample "$bin/glm-gpusample"
    grep -hE 'worst|error|us ' "$out/kernels.log" "$out/prefill.log" "$out/sample.log" | tail -40
}

# What the CPU's backend passes, too, steps that overlap, and two layers at full width
# beside float64.
truth() {
    for arch in 90 80; do
        export GLM_CUDA_ARCH=$arch
        for p in forward model_demo goldens beam_goldens infill score sched_overlap contexts; do
            program "$p-$arch" "$bin/$p"
        done
        unset GLM_CUDA_ARCH
    done
    program float64 "$bin/float64" 12288 96 32768 90 80
    grep -h 'from float64' "$out/float64.log"
}

# An engine with the demo on the card: $engine, $log, and the socket that glm takes.
serve() {       # name for the log, program, options
    log=$out/$1.log
    exe=$2
    shift 2
    GLM_SOCKET=$(mktemp -d)/engine.sock
    export GLM_SOCKET
    "$bin/$exe" --backend cuda --model models/demo --socket "$GLM_SOCKET" "$@" >"$log" 2>&1 &
    engine=$!
    i=0                         # sm_80's kernels are compiled at the first start
    until grep -q serving "$log" || ! kill -0 $engine 2>/dev/null || [ $i = 450 ]; do
        i=$((i + 1))
        sleep 0.2
    done
}

# The engine on the card, asked over its socket: the demo's goldens.
wire() {        # arch
    export GLM_CUDA_ARCH="$1"
    serve "engine-$1" glm-engine
    unset GLM_CUDA_ARCH
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
    rm -rf "$(dirname "$GLM_SOCKET")"
}

log_of() { echo "fault-$1" | tr , -; }

# An engine whose n-th call of a kind fails, or makes the card fail by itself (engine/gpu.h).
serve_fault() { # call, options
    export GLM_GPU_FAULT="$1"
    shift
    serve "$(log_of "$GLM_GPU_FAULT")" glm-engine-faults "$@"
    unset GLM_GPU_FAULT
}

# It ends with the status, and says which.
fault() {       # status, what is said, name, call
    ended=0
    i=0
    while kill -0 $engine 2>/dev/null && [ $i -lt 250 ]; do     # the hanging kernel takes 60 s
        i=$((i + 1))
        sleep 0.2
    done
    kill -9 $engine 2>/dev/null && echo "# $3: it still ran after 50 s"
    wait $engine || ended=$?
    [ $ended = "$1" ]
    say $? "$3: the engine ends with $1 ($ended)"
    grep -q "$2" "$log"
    say $? "$3: $(grep -oE '(failed|cannot).*' "$log" | head -1)"
}

fault_at_start() {      # status, what is said, name, call
    serve_fault "$4"
    fault "$@"
    rm -rf "$(dirname "$GLM_SOCKET")"
}

# With four requests under way: each hears of it, and has nothing but what is right.
fault_in_step() {       # status, what is said, name, call
    serve_fault "$4" --gpu-timeout 1
    text=$out/$(log_of "$4")
    clients=
    for c in 1 2 3 4; do
        many "$text.$c" &
        clients="$clients $!"
    done
    fault "$@"
    told=0
    right=0
    for c in $clients; do
        wait "$c" || told=$((told + 1))
    done
    for c in 1 2 3 4; do
        grep -q 'engine failed' "$text.$c.err" || told=$((told - 1))
        got=$(cat "$text.$c")
        case $all in "$got"?*) [ -z "$got" ] || right=$((right + 1)) ;; esac
    done
    [ "$told $right" = "4 4" ]
    say $? "$3: of 4 requests under way, $told are told, $right have the beginning of their text"
    rm -rf "$(dirname "$GLM_SOCKET")"
}

many() {        # file for the text
    timeout 60 "$bin/glm" complete --max-tokens 900 --min-tokens 900 the >"$1" 2>"$1.err"
}

faults() {
    program model_faults "$bin/model_faults"
    fault_at_start 3 'cannot allocate [0-9]* of [0-9]* bytes.*out of memory' 'no memory' cudaMalloc,1,2
    fault_at_start 4 'loading weights failed: pack: an illegal memory' 'an error while loading' pack,3,700
    serve right glm-engine-faults
    many "$out/right"
    say $? "900 tokens without a fault"
    all=$(cat "$out/right")
    kill $engine
    wait $engine
    rm -rf "$(dirname "$GLM_SOCKET")"
    illegal='an illegal memory access'
    fault_in_step 4 "device failed: cudaGraphLaunch: $illegal" 'a sticky error' cudaGraphLaunch,600,700
    fault_in_step 4 "device failed: waiting for the device: $illegal" "the card's own" astray,600,0
    fault_in_step 5 'device failed: cudaGraphLaunch: no CUDA-capable' 'a card taken away' cudaGraphLaunch,601,100
    fault_in_step 6 'device failed: waiting for the device: not done after 1 s' 'a kernel that does not end' \
        hang,600,0
    fault_in_step 7 'device failed: logits: NaN or infinity in 1 of . rows; row .: token' 'NaN in a row' nan,300,0
}

steps() {       # name for the log, more options
    log=$out/$1.log
    shift
    timeout "$limit" "$bin/glm-bench" steps --backend cuda --load-format dummy --model $model --head int8 \
        --kv-dtype int8 "$@" >"$log" 2>&1
    status=$?
    cat "$log"
    say $status "$(basename "$log" .log) of the whole model"
}

plan() {        # name for the log, options
    log=$out/$1.log
    shift
    timeout 60 "$bin/glm-engine" --plan --model $model --load-format dummy --kv-dtype int8 "$@" >"$log" 2>&1
    say $? "$(basename "$log" .log): $(grep -o 'KV: [0-9,]* tokens' "$log")"
}

# No round begins after a minute: with a slow disk there is one.
load() {
    dir=${LOAD_DIR:-$bin/load.model}
    timeout 150 "$bin/glm-bench" load --backend cuda --dir "$dir" --drop-caches --seconds 60 \
        >"$out/load.log" 2>"$out/load.err"
    status=$?
    cat "$out/load.log"
    [ $status = 0 ] || tail -3 "$out/load.err"
    say $status "a load of 16 GiB of layers"
    [ ! -d "$dir" ] || "$bin/glm-bench" load --dir "$dir" --remove
}

# Small shapes.  GLM_SANITIZED, the tool: fewer of them.
sanitize() {    # tool, arch, program
    log=$out/$1-$2-$3.log
    small=
    case $3 in glm-*) small="--small --arch $2" ;; esac
    # shellcheck disable=SC2086
    GLM_SANITIZED=$1 GLM_CUDA_ARCH=$2 timeout "$limit" \
        compute-sanitizer --tool "$1" --error-exitcode 9 "$bin/$3" $small >"$log" 2>&1
    status=$?
    [ $status = 0 ] || grep -m8 -E '=====|^not ok|Bail' "$log"
    say $status "compute-sanitizer $1 sm_$2 $3: $(grep -E 'SUMMARY' "$log" | tail -1 | sed 's/^=* *//')"
}

# The kernels' all at once, as each mostly keeps one core busy.  racecheck does not follow
# bulk copies, so sm_90's matrices and contexts are left out there: sm_80's stand for the
# rest of the code, which is the same but for norm's exchange.  The sampler has none.  The
# model's are one after the other, since the tool finds no memory for itself in several at
# once, nor in synccheck of sm_90's at all, whatever the card has left; racecheck of its
# steps takes minutes each.
sanitize_all() {
    for arch in 80 90; do
        for p in glm-gputest glm-prefilltest glm-gpusample; do
            sanitize memcheck $arch $p &
            sanitize synccheck $arch $p &
            case $arch-$p in
            80-* | 90-glm-gpusample) sanitize racecheck $arch $p & ;;
            esac
        done
    done
    wait
    sanitize memcheck 80 model_demo
    sanitize synccheck 80 model_demo
    sanitize memcheck 90 model_demo
    echo "# racecheck: sm_80's kernels, and sm_90's sampler (it does not follow cp.async.bulk)"
}

bench() {
    timeout "$limit" "$bin/glm-bench" kernels >"$out/bench.log" 2>&1
    status=$?
    cat "$out/bench.log"
    say $status "benchmark of the kernels"
}

# ---- the table ----

number() {      # of tokens in a plan
    sed -n 's/^KV: \([0-9,]*\) tokens.*/\1/p' "$1" 2>/dev/null | tr -d ,
}

# wanted: of an H100 80GB; best peer: Marlin's matrices and a cuBLAS head there, no
# attention, no sampler.  The floor is of this card: bytes of a step at context 128 over
# the read peak of the same run.
table() {
    touch "$out/steps.log" "$out/steps-80.log" "$out/load.log" "$out/bench.log"
    awk -v kv="$(number "$out/plan-h100.log")" -v here="$(number "$out/plan.log")" '
        function mark(good) { return good ? "reached" : "missed" }
        function show(x, f) { return x == "" ? "-" : sprintf(f, x) }
        function by(x, most) { return x == "" ? "" : mark(x <= most) }
        FILENAME ~ /steps-80/ { if ($2 == "rows") s80[$1] = $3; if ($2 == "prompt") p80[$1] = $3; next }
        FILENAME ~ /steps/    { if ($2 == "rows") s[$1] = $3; if ($2 == "prompt") p[$1] = $3; next }
        /^load, / { load[$2] = $(NF - 3); rate[$2] = $(NF - 4); next }
        /^67 GB/ { whole_s = $7 }
        /read peak [0-9]/ { card = $0 }
        /^whole steps/ { whole = 1; next }
        whole && $1 ~ /^[0-9]+$/ { floor[$1] = $4; next }
        whole && $1 != "rows" { whole = 0 }
        /^ *8 x +2048 / {       # a * may stand behind the bracket
            gsub(/[()*]/, " ")
            int8 = $5
            fp16 = $7
        }
        END {
            n = split("1 8 16 32 64", rows, " ")
            split("23.9 24.4 25.6 29.6 40.5", want, " ")
            split("28.1 28.6 29.1 31.6 48.5", peer, " ")
            print card == "" ? "no benchmark of this card" : card
            printf "%6s %9s %10s %11s %9s %8s %11s %11s  %s\n", "rows", "step, ms", "tokens/s", "wanted, ms", \
                "floor, ms", "% floor", "best peer", "sm_80, ms", "wanted"
            for (i = 1; i <= n; i++) {
                r = rows[i]
                printf "%6d %9s %10s %11.1f %9s %8s %11.1f %11s  %s\n", r, show(s[r], "%.2f"), \
                    show(s[r] == "" ? "" : r * 1000 / s[r], "%.1f"), want[i], show(floor[r], "%.2f"), \
                    show(s[r] == "" || floor[r] == "" ? "" : 100 * floor[r] / s[r], "%.1f"), peer[i], \
                    show(s80[r], "%.2f"), by(s[r], want[i])
            }
            split("512 2048", tokens, " ")
            split("0.23 0.90", most, " ")
            for (i = 1; i <= 2; i++) {
                t = tokens[i]
                printf "prefill of %4d tokens: %s s, wanted %.2f, sm_80 %s  %s\n", t, \
                    show(p[t] == "" ? "" : p[t] / 1000, "%.3f"), most[i], \
                    show(p80[t] == "" ? "" : p80[t] / 1000, "%.3f"), by(p[t] == "" ? "" : p[t] / 1000, most[i])
            }
            printf "attention of 8 x 2048: %s %% of read peak in int8, %s in fp16, wanted 90  %s\n", \
                show(int8, "%.1f"), show(fp16, "%.1f"), int8 == "" ? "" : mark(int8 >= 90)
            printf "load, cold: %s GB/s, %s %% of the slower of reads and copies (cached %s), wanted 85; 67 GB in " \
                "%s s, extrapolated  %s\n", show(rate["cold"], "%s"), show(load["cold"], "%s"), \
                show(load["file"], "%s"), show(whole_s, "%s"), load["cold"] == "" ? "" : mark(load["cold"] >= 85)
            printf "KV room: %s tokens of int8 on an H100 80GB, wanted 8960 (%s on this card)  %s\n", \
                show(kv, "%d"), show(here, "%d"), kv == "" ? "" : mark(kv >= 8960)
        }' "$out/steps-80.log" "$out/steps.log" "$out/load.log" "$out/bench.log"
}

part() {
    echo "# $1, $(date +%T)"
    case $1 in
    tests) tests ;;
    truth) truth ;;
    wire)
        wire 90
        wire 80
        ;;
    faults) faults ;;
    steps)
        steps steps --prefill 512,2048
        GLM_CUDA_ARCH=80 steps steps-80 --prefill 512
        plan plan-h100 --device-memory $h100
        plan plan
        ;;
    load) load ;;
    sanitize)
        if command -v compute-sanitizer >/dev/null; then
            sanitize_all
        else
            echo "ok - compute-sanitizer # SKIP not installed"
        fi
        ;;
    bench) bench ;;
    table) table ;;
    *) say 2 "there is no part \"$1\"" ;;
    esac
}

if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader
fi
[ $# -gt 0 ] || set -- tests truth wire faults steps load sanitize bench table
for p; do
    part "$p" 2>&1 | tee "$out/$p.txt"
done
if [ -s "$failed" ]; then
    cat "$failed"
    echo "gpu: FAILED"
    exit 1
fi
echo "gpu: all passed"
