#!/bin/sh
# Static checks: layout of lines, direction of includes, cppcheck.  Each
# finding is printed; the exit status is 1 when there was any.
set -u
bad=0
say() { echo "$1"; bad=1; }

sources=$(git ls-files -co --exclude-standard '*.c' '*.h' '*.cu' '*.cuh' '*.sh' '*.pl' '*.pm' '*.t' '*.py')

for f in $sources; do
    [ -f "$f" ] || continue
    columns=120
    blank='\t| +$'
    case $f in *.t|*.pm|*.pl|*.py) columns=165 blank='\t' ;; esac
    hits=$(grep -nP "$blank" "$f" | head -3)
    [ -z "$hits" ] || say "$f: tab or trailing blank: $hits"
    hits=$(awk -v n=$columns 'length($0) > n {print FNR": "length($0)" columns"}' "$f" | head -3)
    [ -z "$hits" ] || say "$f: long line: $hits"
    [ -z "$(tail -c1 "$f")" ] || say "$f: no newline at the end"
done
for f in ngx_http_glm_module/ngx_*.[ch]; do
    hits=$(awk 'length($0) > 80 {print FNR}' "$f" | head -3)
    [ -z "$hits" ] || say "$f: over 80 columns at $hits"
done

# Dependencies point one way: the wire is below both sides, kernels are below
# the engine and know neither it nor the wire.
forbid() {      # files, pattern, why
    # shellcheck disable=SC2086
    hits=$(grep -nE "^#include.*($2)" $1 /dev/null 2>/dev/null)
    [ -z "$hits" ] || say "$3: $hits"
}
forbid "ngx_http_glm_module/glm_wire.h" '"' "glm_wire.h includes nothing of ours"
forbid "ngx_http_glm_module/glm_ring.h" '"(ngx|engine|model)' "glm_ring.h knows the wire only"
forbid "$(ls ngx_http_glm_module/ngx_*.[ch])" '"(engine|model|tokenizer|sampler|config|kernels|glm_kernels)' \
    "the module never sees the engine"
forbid "$(ls kernels/*.[ch] kernels/cpu/*.[ch] kernels/*.cu 2>/dev/null)" \
    '"(engine|sched|glm_wire|glm_ring|ring_|ngx_)' \
    "kernels know neither engine nor wire"
forbid "$(ls engine/*.[ch] | grep -vE '/(ring_|wire_|spool|main|daemon|options)')" '"(glm_wire|glm_ring)' \
    "only the ring server reads the wire"
forbid "$(ls engine/*.[ch] tools/*/*.[ch])" '"ngx_|<ngx_' "no nginx type below the ring"

if command -v cppcheck >/dev/null; then
    # TAILQ_* and tables that a macro fills are beyond it; the compiler's own
    # warnings and the sanitizers look for the same.
    cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr \
        --suppress=missingIncludeSystem --suppress=unknownMacro --suppress=uninitvar \
        --suppress=legacyUninitvar --suppress=invalidPointerCast \
        --error-exitcode=1 -D_GNU_SOURCE -Iengine -Ikernels -Ingx_http_glm_module \
        engine kernels/cuda_size.c kernels/cpu tools/convert tools/bench tools/glm || bad=1
else
    say "cppcheck is not installed"
fi
[ $bad = 0 ] && echo "check: nothing found"
exit $bad
