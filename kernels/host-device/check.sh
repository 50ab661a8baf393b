#!/usr/bin/env bash
# check.sh OUT: builds the host device into OUT; checks transfers between devices, threads and processes
# (check/nccl.cpp), and holds the device against candle's CPU operations: with work run at once, late, and with
# the blocks of every grid in reverse order.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 OUT" >&2; exit 2; }
cd "$(dirname "$0")"
./build.sh "$1"
out=$(cd "$1" && pwd)
export CUDA_HOME=$out CUDA_PATH=$out CUDA_COMPUTE_CAP=90 PATH=$out/bin:$PATH LD_LIBRARY_PATH=$out/lib
cd check
"${CXX:-g++}" -std=c++17 -O1 -Wall -Wextra -pthread nccl.cpp -o "$out/objects/check_nccl" -L"$out/lib" -lnccl -lcuda
for switch in CALM_HOST_DEVICE_LATE=0 CALM_HOST_DEVICE_LATE=1; do
    echo "== nccl, $switch"
    env "$switch" "$out/objects/check_nccl"
done
for switch in CALM_HOST_DEVICE_LATE=0 CALM_HOST_DEVICE_LATE=1 CALM_HOST_DEVICE_REVERSED=1; do
    echo "== $switch"
    env "$switch" cargo test --locked --quiet
done
