# CUDA kernels: libglm_cuda.a, their tests and benchmark (glm-bench kernels), and the
# bundle for a machine with a card.  GLM_CUDA=auto (when nvcc is there), 0 or 1.

GLM_CUDA  ?= auto
NVCC      ?= $(firstword $(wildcard /usr/local/cuda/bin/nvcc) nvcc)
ifeq ($(GLM_CUDA),auto)
HAVE_CUDA := $(if $(shell command -v $(NVCC) 2>/dev/null),1,0)
else
HAVE_CUDA := $(GLM_CUDA)
endif

# With and without CUDA the archive has other members: a change of GLM_CUDA makes it anew.
$(shell mkdir -p $(B); [ -f $(B)/cuda.$(HAVE_CUDA) ] || \
    { rm -f $(B)/cuda.[01]; touch $(B)/cuda.$(HAVE_CUDA); })

# Files of the engine that call the CUDA runtime, or stand on it.
CUDA_ENGINE  := engine/gpu.c $(filter-out $(addprefix engine/model_cuda_,plan.c report.c pieces.c), \
                $(wildcard engine/model_cuda*.c))
CUDA_HOME    ?= $(patsubst %/bin/nvcc,%,$(shell command -v $(NVCC) 2>/dev/null || echo /usr/local/cuda/bin/nvcc))
CUDA_INCLUDE := $(patsubst %/cuda_runtime_api.h,%,$(wildcard $(CUDA_HOME)/include/cuda_runtime_api.h))

$(B)/obj/engine/gpu.o: CPPFLAGS += -isystem $(CUDA_INCLUDE)

ifeq ($(HAVE_CUDA),1)

ENGINE_SRC := $(filter-out engine/gpu_none.c,$(ENGINE_SRC))
BENCH_SRC  := $(filter-out tools/bench/%_none.c,$(BENCH_SRC))
BENCH_CUDA := $(B)/obj/cuda/bench_kernels.o
LIBS       := $(B)/libglm_cuda.a -L$(CUDA_HOME)/lib64 -lcudart_static -lrt \
              -Wl,-Bstatic -lstdc++ -Wl,-Bdynamic $(LIBS)

# The runtime is linked in, and finds the driver when it is first called: a program
# with CUDA runs where there is neither.
$(PROGRAMS) $(UNIT) $(B)/t/fake_engine: | $(B)/libglm_cuda.a

# The bundle's kernels are 2 MB so, 12 without; not every nvcc has it.
NVSIZE    := $(if $(shell $(NVCC) --help | grep -e --compress-mode),-compress-mode=size)
NVFLAGS   := -O3 -std=c++17 -lineinfo $(NVSIZE) -Ikernels -Iengine -Xcompiler -Wall,-Wextra,-fPIC
SM80      := -gencode arch=compute_80,code=[sm_80,compute_80]
SM90      := -gencode arch=compute_90a,code=sm_90a
CUDA_TWICE := attn_context attn_row kv_write norm pack sample
CUDA_OBJ  := $(B)/obj/cuda/cuda_ops.o $(B)/obj/cuda/linear_sm80.o $(B)/obj/cuda/linear_sm90.o \
             $(foreach a,80 90,$(CUDA_TWICE:%=$(B)/obj/cuda/%_$(a).o)) $(call obj,kernels/cuda_size.c)

# The sampler rounds as the CPU's does.
$(B)/obj/cuda/sample_%.o: NVFLAGS += -fmad=false

# Every file but two is compiled once for each architecture, into names of its own.
$(B)/obj/cuda/%_80.o: kernels/%.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -DGLM_ARCH=80 $(SM80) -MMD -MP -c -o $@ $<

$(B)/obj/cuda/%_90.o: kernels/%.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -DGLM_ARCH=90 $(SM90) -MMD -MP -c -o $@ $<

$(B)/obj/cuda/linear_sm80.o: kernels/linear_sm80.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -DGLM_ARCH=80 $(SM80) -MMD -MP -c -o $@ $<

$(B)/obj/cuda/linear_sm90.o: kernels/linear_sm90.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -DGLM_ARCH=90 $(SM90) -MMD -MP -c -o $@ $<

$(B)/obj/cuda/cuda_ops.o: kernels/cuda_ops.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) $(SM80) -MMD -MP -c -o $@ $<

$(B)/libglm_cuda.a: $(CUDA_OBJ)
	rm -f $@
	$(AR) rcs $@ $^

$(BENCH_CUDA): tools/bench/kernels.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) $(SM80) $(SM90) -Itools/bench -MMD -MP -c -o $@ $<

$(B)/glm-bench: $(BENCH_CUDA)

# ---- the bundle: what a machine with a card, CUDA's driver and nothing else needs ----

# Its programs share the kernels as one library, and find it and the runtime beside them.
GPU      := $(B)/gpu
GPU_LIBS := -L$(GPU) -lglm_cuda -L$(CUDA_HOME)/lib64 -lcudart
GPU_PATH := -Wl,-rpath,'$$ORIGIN' -Wl,-s
GPU_NVCC := $(NVCC) $(NVFLAGS) -cudart shared -Xlinker -rpath,'$$ORIGIN',-s

$(call obj,kernels/cuda_size.c): ISA := -fPIC

$(GPU)/libglm_cuda.so: $(CUDA_OBJ)
	@mkdir -p $(@D)
	$(NVCC) -shared -cudart shared -o $@ $^
	strip --strip-unneeded $@
	cp -L $(CUDA_HOME)/lib64/libcudart.so.[0-9]* $(@D)

$(GPU)/glm-gputest: t/gpu/kernels.cpp
$(GPU)/glm-prefilltest: t/gpu/prefill.cpp
$(GPU)/glm-gputest $(GPU)/glm-prefilltest: t/gpu/data.h t/gpu/host.h $(GPU)/libglm_cuda.so
	$(GPU_NVCC) -Xcompiler -fopenmp -o $@ $(filter %.cpp,$^) $(GPU_LIBS) -lgomp

$(GPU)/glm-gpusample: t/gpu/sample.cpp t/gpu/host.h t/unit/sample_rows.h \
        $(call obj,engine/sampler.c engine/sampler_scan.c engine/philox.c) $(GPU)/libglm_cuda.so
	$(GPU_NVCC) -o $@ $< $(filter %.o,$^) $(GPU_LIBS)

# The engine, and the tests of the model's arithmetic that every backend must pass.
GPU_MAIN := $(addprefix $(GPU)/,glm-engine glm glm-bench)
GPU_UNIT := $(addprefix $(GPU)/,forward goldens beam_goldens infill score model_demo float64 \
              sched_overlap contexts)
# Those in which calls fail, and a card does by itself (engine/gpu.h).
GPU_FAULTS := $(addprefix $(GPU)/,glm-engine-faults model_faults)
$(GPU)/glm-engine: $(B)/obj/engine/main.o
$(GPU)/glm:        $(call obj,tools/glm/main.c $(CLIENT_SRC))
$(GPU)/glm-bench:  $(call obj,$(BENCH_SRC)) $(BENCH_CUDA)
$(GPU_UNIT): $(GPU)/%: $(B)/obj/gpu/%.o $(B)/obj/t/gpu/no_cpu.o
$(GPU)/glm-engine-faults: $(B)/obj/engine/main.o
$(GPU)/model_faults: $(B)/obj/gpu/model_faults.o $(B)/obj/t/gpu/no_cpu.o
$(GPU_FAULTS): $(B)/obj/faults/engine/gpu.o $(B)/obj/cuda/broken.o
$(GPU_MAIN) $(GPU_UNIT) $(GPU_FAULTS): $(B)/libglm_engine.a $(GPU)/libglm_cuda.so
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(B)/libglm_engine.a $(GPU_LIBS) \
	    -Wl,-Bstatic -ljansson -lz -lstdc++ -Wl,-Bdynamic -lm -ldl $(GPU_PATH)

$(B)/obj/gpu/model_faults.o: CPPFLAGS += -DGLM_GPU_FAULTS
$(B)/obj/cuda/broken.o: t/gpu/broken.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) $(SM80) -MMD -MP -c -o $@ $<

$(B)/obj/gpu/float64.o: OPT := -O3
$(B)/obj/gpu/%.o: t/unit/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -DGLM_TEST_CUDA $(CFLAGS) -MMD -MP -c -o $@ $<

# Models and goldens, under the names that the tests know.
$(GPU)/data: $(B)/glm-convert $(wildcard t/data/goldens/*/*.json)
	rm -rf $@
	mkdir -p $@/models $@/t/data/goldens $@/t/data/demo
	tools/test_models.sh $(B)
	cp -R models/demo $(B)/models/mini-tp1 $@/models
	cp -R t/data/goldens/. $@/t/data/goldens
	cp t/data/demo/goldens.json $@/t/data/demo
	cp -R t/data/glm-130b-int4 $@/models

$(GPU)/run.sh: t/gpu/run.sh
	@mkdir -p $(@D)
	cp $< $@

gpu-bundle: $(addprefix $(GPU)/,glm-gputest glm-prefilltest glm-gpusample run.sh data) \
        $(GPU_MAIN) $(GPU_UNIT) $(GPU_FAULTS)
	@test $$(du -sk $(GPU) | cut -f1) -le 40960 || { echo "$(GPU) is over 40 MiB"; exit 1; }

-include $(wildcard $(B)/obj/cuda/*.d)

else

ENGINE_SRC := $(filter-out $(CUDA_ENGINE),$(ENGINE_SRC))
BENCH_SRC  := $(filter-out tools/bench/copies.c,$(BENCH_SRC))

gpu-bundle:
	@echo "no nvcc: GLM_CUDA=$(GLM_CUDA)"; exit 1

endif

.PHONY: gpu-bundle
