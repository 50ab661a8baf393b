#!/usr/bin/env bash
# check_nccl.sh OUT: checks transfers between devices, threads and processes (check/nccl.cpp) with the host device
# that build.sh has built into OUT; some seconds.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 OUT" >&2; exit 2; }
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/check"
export LD_LIBRARY_PATH=$out/lib
"${CXX:-g++}" -std=c++17 -O1 -Wall -Wextra -pthread nccl.cpp -o "$out/objects/check_nccl" -L"$out/lib" -lnccl -lcuda
for switch in CALM_HOST_DEVICE_LATE=0 CALM_HOST_DEVICE_LATE=1; do
    echo "== nccl, $switch"
    env "$switch" "$out/objects/check_nccl"
done
