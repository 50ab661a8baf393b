#!/usr/bin/env bash
# What several processes cost on this machine, which should do nothing else meanwhile: the engine's sum and the tree beside a copy in memory,
# and tokens a second of one process with all cores against N with a share of them, with either reduction.
#
#   eval/processes/run.sh [N] [CONFIG] [STEPS] [ARGUMENTS of calm train]       (2, baseline and 60)
#
# The steps that are left out at the beginning are a sixth.
set -euo pipefail
cd "$(dirname "$0")/../.."
n=${1:-2} config=${2:-baseline} steps=${3:-60}
more=("${@:4}")
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
cargo build --release --workspace --features calm-cli/mpi --bin calm
target/release/calm bench --what exchange --processes "$n" --device cpu

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
rate() { # NAME ARGUMENTS...: the median of tokens a second
  local name=$1
  shift
  target/release/calm train --quiet --config "$config" --out "$out/$name" --cache "$out/cache" --device cpu --skip-scores \
    --set "train.lm.steps=$steps" --set train.lm.log_every=1 --set train.lm.warmup_steps=0 --set train.lm.eval_every=0 "${more[@]}" "$@" > /dev/null
  python3 - "$out/$name/metrics.jsonl" "$name" "$((steps / 6))" <<'PY'
import json, statistics, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
rates = [l["values"]["train/tokens_per_second"] for l in lines
         if l.get("stage") == "lm" and l["step"] > int(sys.argv[3]) and "train/tokens_per_second" in l.get("values", {})]
print(f"{sys.argv[2]:<24} {statistics.median(rates):>10.0f} tokens/s")
PY
}
for round in 1 2 3; do
  rate "one-$round"
  rate "several-$round" --processes "$n"
  rate "one-fixed-$round" --set train.lm.reduction=fixed --set train.lm.pieces=4
  rate "several-fixed-$round" --processes "$n" --set train.lm.reduction=fixed --set train.lm.pieces=4
done
