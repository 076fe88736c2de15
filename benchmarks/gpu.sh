#!/usr/bin/env bash
# What only a GPU can do, within a number of seconds: the training steps that have no result yet, one network at a time
# with nothing beside it; then the runs of the full grid, several at once; then where a step spends its time. All go on
# where they stopped when called again.
#
#   bash benchmarks/gpu.sh TFDS_DIR SECONDS [RUNS]     # RUNS: names of benchmarks/grids/full.json, with commas
#
# Needs JAX with CUDA, Keras and this package (`pip install --no-deps .`); not TensorFlow.
set -u
seeds() { echo "$1_dense_seed$2,$1_elrt_seed$2"; }
runs=$(seeds resnet20 0),$(seeds vgg16 0),$(seeds resnet20 1),$(seeds resnet20 2),$(seeds vgg16 1),$(seeds vgg16 2)
runs=$runs,$(seeds resnet56 0),resnet20_glorot,$(seeds resnet32 0),resnet20_cp_distillation
runs=$runs,resnet20_distillation,resnet20_any_ranks
runs=$runs,resnet20_cp,resnet20_thin,resnet20_weight_decay,$(seeds resnet56 1),$(seeds resnet56 2)
runs=${3:-$runs,$(seeds resnet32 1),$(seeds resnet32 2),resnet20_vbmf_seed2,resnet20_half_width}
data=$1 end=$(($(date +%s) + $2))
left() { echo $((end - $(date +%s))); }
export KERAS_BACKEND=jax PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-.cache/jax} JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
# Without Triton's matrix products: to choose among them XLA compiles dozens of kernels for each shape.
export XLA_FLAGS=${XLA_FLAGS:---xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=2}

# The tuned steps first of all: four minutes are enough for them.
for precision in mixed_bfloat16 float32; do
    for one in resnet20:1024 vgg16_cifar:1024 resnet18:256 resnet56:1024 resnet50:256; do
        model=${one%:*} name=gpu_tuned && [ "$precision" = float32 ] && name=gpu_tuned_float32
        if [ ! -f "benchmarks/results/steps/${name}_$model.json" ] && [ "$(left)" -gt 60 ]; then
            timeout "$(left)" python3 -m benchmarks.measure steps --name="$name" --precision="$precision" --steps_per_call=10 \
                --rounds=11 --variants=dense,low_rank_0.4,tuned_0.4 --batch_size="${one#*:}" --models="$model" 2>&1 \
                | sed -u "s/^/$model /" &
        fi
    done
    wait
done

# All are built and traced at once, on the processor; they take turns with the device.
for one in resnet20:1024 vgg16_cifar:1024 resnet18:256 resnet56:1024 resnet50:256; do
    model=${one%:*}
    if [ ! -f "benchmarks/results/steps/gpu_$model.json" ] && [ "$(left)" -gt 60 ]; then
        timeout "$(left)" python3 -m benchmarks.measure steps --name=gpu --precision=mixed_bfloat16 --steps_per_call=10 \
            --rounds=11 --variants=dense,low_rank_0.5,low_rank_0.4,low_rank_0.25 --batch_size="${one#*:}" \
            --models="$model" 2>&1 | sed -u "s/^/$model /" &
    fi
done
wait

PATH=$PATH:/usr/local/nvidia/bin # where containers have the driver's programs
# A small network leaves part of a GPU idle; with MPS the kernels of several processes run side by side.
if command -v nvidia-cuda-mps-control >/dev/null && [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ]; then
    CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d) CUDA_MPS_LOG_DIRECTORY=$(mktemp -d)
    export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    nvidia-cuda-mps-control -d && trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi
# Further seeds of a network start when the first ones are done, and find their program compiled.
if [ "$(left)" -gt 60 ]; then
    python3 -m benchmarks.train --grid=benchmarks/grids/full.json --data="$data" --keep_states --parallel=4 \
        --only="$runs" --time_limit_s=$(($(left) - 30))
fi

for model in vgg16_cifar resnet18 resnet20; do
    if ! grep -qs composed "benchmarks/results/kernels/gpu_$model.json" && [ "$(left)" -gt 90 ]; then
        timeout "$(left)" python3 -m benchmarks.measure kernels --models="$model"
    fi
done
