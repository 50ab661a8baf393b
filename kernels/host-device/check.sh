#!/usr/bin/env bash
# check.sh OUT: builds the host device into OUT; checks its NCCL (check_nccl.sh), and holds it against candle's
# CPU operations: with work run at once, late, and with the blocks of every grid in reverse order.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 OUT" >&2; exit 2; }
cd "$(dirname "$0")"
./build.sh "$1"
./check_nccl.sh "$1"
out=$(cd "$1" && pwd)
export CUDA_HOME=$out CUDA_PATH=$out CUDA_COMPUTE_CAP=90 PATH=$out/bin:$PATH LD_LIBRARY_PATH=$out/lib
cd check
for switch in CALM_HOST_DEVICE_LATE=0 CALM_HOST_DEVICE_LATE=1 CALM_HOST_DEVICE_REVERSED=1; do
    echo "== $switch"
    env "$switch" cargo test --locked --quiet
done
