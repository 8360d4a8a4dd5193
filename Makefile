# Targets: all (default), run, test, check, bench, deps, clean.  See README.md.
# A source file belongs to the program of its folder; nothing is listed twice.

B        ?= build
CC       ?= gcc
OPT      ?= -O2
WARN     := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
CFLAGS   := -std=gnu11 $(OPT) -g -fno-omit-frame-pointer -ffp-contract=off $(WARN) $(SAN)
CPPFLAGS := -D_GNU_SOURCE -Iengine -Ikernels -Ingx_http_glm_module
LDFLAGS  := -pthread $(SAN)

ENGINE_SRC  := $(filter-out engine/main.c,$(wildcard engine/*.c)) $(wildcard kernels/cpu/*.c)
CONVERT_SRC := $(filter-out tools/convert/main.c,$(wildcard tools/convert/*.c))
CLIENT_SRC  := $(filter-out tools/glm/main.c,$(wildcard tools/glm/*.c))
UNIT_SRC    := $(wildcard t/unit/*.c)

obj = $(patsubst %.c,$(B)/obj/%.o,$(1))
ENGINE_OBJ  := $(call obj,$(ENGINE_SRC))
CONVERT_OBJ := $(call obj,$(CONVERT_SRC))
CLIENT_OBJ  := $(call obj,$(CLIENT_SRC))
UNIT        := $(patsubst t/unit/%.c,$(B)/t/%,$(UNIT_SRC))

all: $(B)/glm-convert unit
unit: $(UNIT)

$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(CFLAGS_$(basename $(notdir $<))) -MMD -MP -c -o "$@" "$<"

# Kernels of one instruction set carry it in their file name.
$(B)/obj/kernels/cpu/%_avx2.o:   OPT += -O3 -mavx2 -mfma -mf16c
$(B)/obj/kernels/cpu/%_avx512.o: OPT += -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c

$(B)/libglm_engine.a: $(ENGINE_OBJ)
	rm -f "$@"; $(AR) rcs "$@" $^

$(B)/glm-convert: $(B)/obj/tools/convert/main.o $(CONVERT_OBJ) $(B)/libglm_engine.a
	$(CC) $(LDFLAGS) -o "$@" $^ -lzip -ljansson -lm

$(B)/t/%: $(B)/obj/t/unit/%.o $(CONVERT_OBJ) $(CLIENT_OBJ) $(B)/libglm_engine.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o "$@" $^ -lzip -ljansson -lm

-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)

.PHONY: all unit
.SECONDARY:
