# The CUDA backend without a card: its own files over t/fakecuda, the runtime and the
# launchers on host memory.  Needs the headers of CUDA, no nvcc and no card.

ifneq ($(CUDA_INCLUDE),)

FAKECUDA_OBJ := $(call obj,$(wildcard t/fakecuda/*.c)) $(B)/obj/faults/engine/gpu.o \
                $(call obj,$(filter-out engine/gpu.c,$(CUDA_ENGINE)))
FAKECUDA_GPU := $(B)/t/fakecuda_kernels $(B)/t/fakecuda_prefill
FAKECUDA_UNIT := $(B)/t/model_cuda $(B)/t/model_faults $(B)/t/contexts $(B)/t/fingerprint
# Tests of the CPU backend that the other one must pass, too.
FAKECUDA_SAME := $(addprefix $(B)/t/fakecuda_,model model_demo forward float64 goldens beam_goldens \
                   infill score sched_overlap)

$(B)/obj/t/fakecuda/%.o: CPPFLAGS += -isystem $(CUDA_INCLUDE) -It/fakecuda -DGLM_GPU_FAULTS
$(B)/obj/t/fakecuda/%.o: OPT := -O3
$(FAKECUDA_UNIT:$(B)/t/%=$(B)/obj/t/unit/%.o): CPPFLAGS += -DGLM_FAKECUDA -It/fakecuda -DGLM_GPU_FAULTS
$(B)/t/fingerprint: LDFLAGS += -Wl,--wrap=open,--wrap=pread,--wrap=munmap

# Calls that can be made to fail; see gpu.h.
$(B)/obj/faults/engine/gpu.o: engine/gpu.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -DGLM_GPU_FAULTS -isystem $(CUDA_INCLUDE) $(CFLAGS) -MMD -MP -c -o $@ $<

$(FAKECUDA_UNIT): $(B)/t/%: $(B)/obj/t/unit/%.o $(FAKECUDA_OBJ) $(B)/libglm_engine.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $(filter-out $(B)/libglm_cuda.a,$^) $(ENGINE_LIBS)

$(B)/obj/faults/t/%.o: t/unit/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -DGLM_TEST_CUDA -DGLM_FAKECUDA $(CFLAGS) -MMD -MP -c -o $@ $<

$(FAKECUDA_SAME): $(B)/t/fakecuda_%: $(B)/obj/faults/t/%.o $(FAKECUDA_OBJ) $(B)/libglm_engine.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

$(B)/glm-engine-fakecuda: $(B)/obj/engine/main.o $(FAKECUDA_OBJ) $(B)/libglm_engine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

$(B)/glm-bench-fakecuda: $(call obj,$(filter-out tools/bench/copies_none.c,$(wildcard tools/bench/*.c))) \
        $(FAKECUDA_OBJ) $(B)/libglm_engine.a
	$(CC) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

# What is tested on the card, of the twins.
$(FAKECUDA_GPU): $(B)/t/fakecuda_%: t/gpu/%.cpp $(wildcard t/gpu/*.h) \
        $(call obj,$(wildcard t/fakecuda/*.c)) $(B)/libglm_engine.a
	@mkdir -p $(@D)
	$(CXX) -std=c++17 -O2 -fopenmp $(CPPFLAGS) -isystem $(CUDA_INCLUDE) $(SAN) -DGLM_FAKECUDA -o $@ \
	    $< $(filter %.o %.a,$^) $(ENGINE_LIBS)

tests: $(FAKECUDA_GPU) $(FAKECUDA_SAME) $(B)/glm-engine-fakecuda $(B)/glm-bench-fakecuda

endif
