# Targets: all (default), deps, run, test, test-clients, check, fuzz, bench, bench-gateway,
# gpu-bundle, clean.  README.md says what each does.  A source file belongs to the program
# of its folder: adding a file needs no change here.

ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc)
endif

B        ?= build
CC       ?= gcc
OPT      ?= -O2
WARN     := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
CFLAGS   = -std=gnu11 $(OPT) $(ISA) -g -fno-omit-frame-pointer -ffp-contract=off $(WARN) $(SAN)
CPPFLAGS := -D_GNU_SOURCE -Iengine -Ikernels -Ingx_http_glm_module
LDFLAGS  := -pthread $(SAN)
ENGINE_LIBS := -ljansson -lz -lm -ldl
LIBS     := $(ENGINE_LIBS)

ENGINE_SRC  := $(filter-out engine/main.c,$(wildcard engine/*.c)) $(wildcard kernels/*.c kernels/cpu/*.c)
CONVERT_SRC := $(filter-out tools/convert/main.c,$(wildcard tools/convert/*.c))
CLIENT_SRC  := $(filter-out tools/glm/main.c,$(wildcard tools/glm/*.c))
BENCH_SRC   := $(wildcard tools/bench/*.c)
FAKE_SRC    := $(wildcard t/fake/*.c)
UNIT_SRC    := $(wildcard t/unit/*.c)
MODULE_SRC  := config $(wildcard ngx_http_glm_module/*)

obj  = $(patsubst %.c,$(B)/obj/%.o,$(1))
UNIT = $(patsubst t/unit/%.c,$(B)/t/%,$(UNIT_SRC))
PROGRAMS = $(B)/glm-engine $(B)/glm-convert $(B)/glm-bench $(B)/glm

all: $(PROGRAMS) $(B)/ngx_http_glm_module.so
tests: all $(B)/t/fake_engine $(UNIT)

include mk/cuda.mk
include mk/fakecuda.mk
ifeq ($(HAVE_CUDA),1)
tests: $(B)/libglm_cuda.a
endif

# ---- objects ----

$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# Kernels of one instruction set carry it in their file name.
$(B)/obj/kernels/cpu/%_avx2.o:   ISA := -mavx2 -mfma -mf16c
$(B)/obj/kernels/cpu/%_avx512.o: ISA := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
$(B)/obj/kernels/cpu/%.o:        OPT := -O3
# Vectors of plain C are structures on the stack: watching each costs gcc many minutes.
$(B)/obj/kernels/cpu/ops_plain.o: ISA := --param asan-stack=0 -fno-sanitize-address-use-after-scope
$(B)/obj/engine/quant.o:   OPT := -O3

$(B)/libglm_engine.a: $(call obj,$(ENGINE_SRC)) $(B)/cuda.$(HAVE_CUDA)
	rm -f $@
	$(AR) rcs $@ $(filter %.o,$^)

# ---- programs ----

$(B)/glm-engine: $(B)/obj/engine/main.o $(B)/libglm_engine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(B)/glm-convert: $(B)/obj/tools/convert/main.o $(call obj,$(CONVERT_SRC)) $(B)/libglm_engine.a
	$(CC) $(LDFLAGS) -o $@ $^ -lzip $(LIBS)

$(B)/glm: $(B)/obj/tools/glm/main.o $(call obj,$(CLIENT_SRC)) $(B)/libglm_engine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(B)/glm-bench: $(call obj,$(BENCH_SRC)) $(B)/libglm_engine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(B)/ngx_http_glm_module.so: $(MODULE_SRC) tools/build_module.sh
	+CC="$(CC)" SAN="$(SAN)" tools/build_module.sh $(B)

# ---- tests ----

# The fake engine brings its own glm_engine_*, and looks at each SUBMIT before the
# real decoder; the archive gives it the rest.
$(B)/t/fake_engine: $(call obj,$(FAKE_SRC)) $(B)/libglm_engine.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -Wl,--wrap=glm_wire_decode_submit -o $@ $^ $(LIBS)

$(B)/libglm_tools.a: $(call obj,$(CONVERT_SRC) $(CLIENT_SRC))
	rm -f $@
	$(AR) rcs $@ $^

$(B)/t/%: $(B)/obj/t/unit/%.o $(B)/libglm_tools.a $(B)/libglm_engine.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ -lzip $(LIBS)

# Tests over the fake model once more, with steps that overlap.
OVERLAP := $(patsubst %,$(B)/t/overlap_%,sched engine engine_fields engine_beams beam infill_sched \
             sched_random no_memory)
$(B)/obj/overlap/%.o: t/unit/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -DFAKE_OVERLAP=64 $(CFLAGS) -MMD -MP -c -o $@ $<

$(OVERLAP): $(B)/t/overlap_%: $(B)/obj/overlap/%.o $(B)/libglm_engine.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

tests: $(OVERLAP)

$(B)/bench/gateway_client: $(B)/obj/t/bench/gateway_client.o
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^

# ---- what people type ----
# exec: a signal to make reaches what serves or tests, not a shell above it.

deps:
	tools/deps.sh build

run: deps
	$(MAKE) all
	exec env B=$(B) tools/run.sh

test:
	tools/deps.sh test
	exec env B=$(B) MAKE="$(MAKE)" tools/test.sh

test-clients:
	tools/deps.sh test
	exec env B=$(B) MAKE="$(MAKE)" tools/test_clients.sh

check:
	tools/deps.sh check
	tools/check.sh
	$(MAKE) tests

# FUZZ_TIME seconds of libFuzzer for each entry of t/fuzz, with clang.
FUZZ_TIME ?= 60
FUZZ_SAN  := -fsanitize=fuzzer-no-link,address,undefined
fuzz:
	tools/deps.sh fuzz
	$(MAKE) CC=clang B=$(B)/fuzz SAN=$(FUZZ_SAN) OPT=-O1 WARN= GLM_CUDA=0 fuzzers
	for f in $(FUZZERS); do \
	    mkdir -p $(B)/fuzz/corpus/$$f; seeds=; \
	    for d in t/data/$$f/fuzz t/data/pt-samples; do [ ! -d $$d ] || seeds="$$seeds $$d"; done; \
	    $(B)/fuzz/$$f -max_total_time=$(FUZZ_TIME) $(B)/fuzz/corpus/$$f $$seeds || exit 1; \
	done
FUZZERS := $(patsubst t/fuzz/%.c,%,$(wildcard t/fuzz/*.c))
fuzzers: $(FUZZERS:%=$(B)/%)
$(FUZZERS:%=$(B)/%): $(B)/%: $(B)/obj/t/fuzz/%.o $(call obj,$(CONVERT_SRC)) $(B)/libglm_engine.a
	$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ -lzip $(LIBS)

bench: deps
	$(MAKE) $(B)/glm-bench
	$(B)/glm-bench cpu --model models/demo

# Tokens a CPU-second of the worker, beside nginx's echo module (libnginx-mod-http-echo).
bench-gateway:
	tools/deps.sh build
	$(MAKE) $(B)/ngx_http_glm_module.so $(B)/t/fake_engine $(B)/bench/gateway_client
	t/bench/gateway.py $(B)

clean:
	rm -rf $(B)

-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)

.PHONY: all tests deps run test test-clients check fuzz fuzzers bench bench-gateway clean
.DELETE_ON_ERROR:
.SECONDARY:
