#!/bin/sh
# Everything that is checked and measured on a GPU, in one call under ten minutes: `sh scripts/gpu-run.sh FOLDER [--simulate]`. Needs the repository
# with what `npm run gpu -- pack` put into .cache/gpu, the driver and, for the baseline, a python3 with torch and transformers: no Node, no network, no
# compiler. FOLDER gets results.txt, of which `npm run gpu -- page FOLDER` makes docs/results/gpu.md, and the processes' own words in log.txt.
out=$1
simulate=$2
scripts=$(cd "$(dirname "$0")" && pwd)
cache=${KVASIR_CACHE:-$scripts/../.cache}
limit=575 scale=1 # Seconds of all parts together, and by how much those are longer than on a GPU.
[ "$simulate" = "--simulate" ] && limit=3600 scale=8
began=$(date +%s)
mkdir -p "$out"
results=$out/results.txt log=$out/log.txt
: >"$results" && : >"$log"

smi() { nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.used --format=csv,noheader 2>/dev/null; }
before=$(smi)
if [ "$simulate" != "--simulate" ] && [ -z "$before" ]; then
  echo "no GPU here: nvidia-smi shows none; nothing was checked and nothing measured"
  exit 1
fi
# In memory where there is room for a large model, else on the disk.
free_gib() { df -Pk "$1" 2>/dev/null | awk 'NR == 2 { print int($4 / 1048576) }'; }
place=${TMPDIR:-/tmp}
[ "$(free_gib /dev/shm)" -ge 24 ] 2>/dev/null && place=/dev/shm
work=$(mktemp -d "$place/kvasir-gpu.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
tar -xJf "$cache/gpu/kvasir.tar.xz" -C "$work" 2>/dev/null ||
  python3 -m tarfile -e "$cache/gpu/kvasir.tar.xz" "$work" || exit 1
bin=$work/bin
# Where cuBLASLt may lie: with PyTorch, or with the system's CUDA.
brought=$(python3 -c "import nvidia, os; print(':'.join(os.path.join(p, 'cu13', 'lib') for p in nvidia.__path__))" 2>/dev/null)
export LD_LIBRARY_PATH="${brought:+$brought:}/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export KVASIR_REDIS_SERVER="$bin/redis-server" KVASIR_KERNELS="$work/kernels" KVASIR_SIDECAR_BINARY="$bin/kvasir-sidecar"
seeds=5 tiny='' shape=llama-8b
if [ "$simulate" = "--simulate" ]; then
  cp "$cache/gpu-simulated/kvasir-sidecar" "$bin/kvasir-sidecar"
  seeds=1 tiny=--tiny shape=tiny
fi

part() { # NAME SECONDS COMMAND...
  name=$1 now=$(date +%s)
  left=$((began + limit - now))
  seconds=$(($2 * scale))
  [ "$seconds" -gt "$left" ] && seconds=$left
  shift 2
  echo "== $name"
  if [ "$seconds" -le 0 ]; then
    code=124
    echo "no time was left" >"$work/err"
    : >"$work/out"
  else
    timeout -k 5 "$seconds" "$@" >"$work/out" 2>"$work/err"
    code=$?
  fi
  {
    echo "=== $name code $code seconds $(($(date +%s) - now))"
    cat "$work/out"
    echo "--- stderr"
    tail -n 30 "$work/err" | cut -c -1000
  } >>"$results"
  { echo "=== $name" && cat "$work/err"; } >>"$log"
  cat "$work/out"
  [ "$code" = 0 ] || { echo "== $name ended with code $code" && tail -n 20 "$work/err"; failed="$failed $name"; }
}

facts() {
  date -u +%Y-%m-%dT%H:%MZ
  [ -n "$simulate" ] && echo "A simulated GPU: no figure means anything"
  echo "Name, driver, SM clock, memory clock, power, temperature, memory used: ${before:-not read}"
  echo "$(nproc) × $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)"
}
cat >"$work/gateway.sh" <<END
set -e
"$bin/kvasir-gpu" write-model --model "$work/model" --shape $shape --vocab 49152
cp "$work"/tokenizer/* "$work/model"
exec "$bin/node" "$work/bench/src/gpu.ts" --model "$work/model" --logs "$work/logs" $tiny
END
facts >"$work/facts"
part facts 5 cat "$work/facts"
# shellcheck disable=SC2086
part check 170 "$bin/kvasir-gpu" check --seeds $seeds $simulate
# shellcheck disable=SC2086
part bench 170 "$bin/kvasir-gpu" bench $simulate
# shellcheck disable=SC2086
part baseline 120 "${KVASIR_PYTHON:-python3}" "$scripts/gpu-baseline.py" $tiny
# shellcheck disable=SC2086
part cluster 90 "$bin/kvasir-gpu" cluster --sidecar "$bin/kvasir-sidecar" $simulate
part gateway 150 sh "$work/gateway.sh"
cat "$work"/logs/*.log >>"$log" 2>/dev/null
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ] && [ -z "$simulate" ]; then
  for tool in memcheck racecheck; do
    [ $((began + limit - $(date +%s))) -gt 30 ] || break
    part sanitizer-$tool 90 "$sanitizer" --tool $tool --error-exitcode 9 "$bin/kvasir-gpu" suite --seeds 1
  done
fi
after=$(smi)
printf 'After: %s\n' "${after:-not read}" >"$work/facts"
part after 5 cat "$work/facts"
echo "$(($(date +%s) - began)) s in all; ended badly:${failed:- none}"
[ -z "$failed" ]
