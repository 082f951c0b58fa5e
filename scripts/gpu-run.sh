#!/bin/sh
# Everything that is measured on a GPU, in one call under ten minutes: `sh scripts/gpu-run.sh FOLDER [--simulate]`. Needs what
# `npm run gpu -- pack` put into .cache/gpu, the driver and, for the baseline, a python3 with torch and transformers; no Node, no network.
# Each part writes a file into FOLDER, of which `npm run gpu -- page FOLDER` makes docs/results/gpu.md.
out=$1
pack=$(dirname "$0")/../.cache/gpu
simulate=$2
mkdir -p "$out"
smi() { nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.used --format=csv,noheader; }
part() { # NAME SECONDS COMMAND...
  name=$1 limit=$2
  shift 2
  echo "== $name"
  timeout "$limit" "$@" >"$out/$name.txt" 2>"$out/$name.err"
  code=$?
  echo $code >"$out/$name.code"
  cat "$out/$name.txt"
  tail -n 20 "$out/$name.err"
}
# Where cuBLASLt may lie: with PyTorch, or with the system's CUDA.
brought=$(python3 -c "import nvidia, os; print(':'.join(os.path.join(p, 'cu13', 'lib') for p in nvidia.__path__))" 2>/dev/null)
export LD_LIBRARY_PATH="$brought:/usr/local/cuda/lib64:$LD_LIBRARY_PATH"
date -u +%Y-%m-%dT%H:%MZ >"$out/date.txt"
smi >"$out/before.txt" 2>/dev/null
if [ "$simulate" = "--simulate" ]; then
  sidecar=$pack/kvasir-sidecar-simulated seeds=1 tiny=--tiny
else
  sidecar=$pack/kvasir-sidecar seeds=5 tiny=
  if [ ! -s "$out/before.txt" ]; then
    echo "no GPU here: nvidia-smi shows none; nothing was checked and nothing measured"
    exit 1
  fi
fi
# shellcheck disable=SC2086
part check 150 "$pack/kvasir-gpu" check --kernels "$pack/kernels" --seeds $seeds $simulate
part bench 170 "$pack/kvasir-gpu" bench --kernels "$pack/kernels" $simulate
part cluster 90 "$pack/kvasir-gpu" cluster --kernels "$pack/kernels" --sidecar "$sidecar" $simulate
part baseline 120 "${KVASIR_PYTHON:-python3}" "$(dirname "$0")/gpu-baseline.py" $tiny
smi >"$out/after.txt" 2>/dev/null
for name in check bench cluster; do
  [ "$(cat "$out/$name.code")" = 0 ] || exit 1
done
