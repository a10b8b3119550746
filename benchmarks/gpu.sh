#!/usr/bin/env bash
# Everything that plug-jax measures on one NVIDIA GPU, in about eight minutes; results are in OUT as
# soon as each is there. Needs `pip install 'jax[cuda12]'` beside plug-jax, and the `demo` and `dev`
# extras; with PyTorch for CUDA, it is measured too.
#
#   benchmarks/gpu.sh OUT            as it is meant
#   benchmarks/gpu.sh OUT --dry-run  a model of no size on whatever devices there are, to see it work
set -uo pipefail
out=${1:?usage: benchmarks/gpu.sh OUT [--dry-run]}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}

if [ "${2:-}" = --dry-run ]; then
  sizes=(tiny) decode=(64x1 --new_tokens 4 --passes 1)
  patience=5 few=(--steps 1 --rounds 1) demo=(--gin.TRAIN_STEPS=20 --gin.EVAL_EVERY=18)
  small=(--gin.VOCAB_SIZE=200 --gin.MAX_LENGTH=48 --gin.BATCH_SIZE=4 --gin.MICRO_BATCHES=1
    --gin.config.PlugConfig.hidden_size=16)
else
  sizes=(base large) decode=(1024x24 768x12 --batches 1 32)
  patience=1 few=(--steps 10 --rounds 5) demo=() small=(--gin.MICRO_BATCHES=1 --gin.BATCH_SIZE=16)
fi
against=()
"$python" -c 'import torch' 2>/dev/null && against=(--against torch)
failed=()

measure() {  # measure NAME SECONDS COMMAND...: standard output to OUT/NAME
  local name=$1 seconds=$2
  shift 2
  echo "== $name: $*"
  timeout $((seconds * patience)) "$@" >"$out/$name" 2>"$out/$name.log" || {
    failed+=("$name")
    tail -n 3 "$out/$name.log"
  }
}

# What the speeds would be worth nothing without: cuDNN's attention equals the plain one.
measure attention.txt 120 "$python" -m pytest -rs tests/ops/test_cudnn_attention.py
for size in "${sizes[@]}"; do
  for stage in structbert palm; do
    measure "train_${size}_$stage.json" 120 "$python" -m plug_jax bench train "${against[@]}" "${few[@]}" --json \
      "--gin_file=runs/${stage}_pretrain.gin" "--gin_file=models/$size.gin" --gin_file=mesh/h100_1.gin "${small[@]}"
  done
done
measure decode.json 120 "$python" -m plug_jax bench decode "${decode[@]}" --json
measure demo.txt 240 "$python" -m plug_jax demo --output "$out/demo" "${demo[@]}"

[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
