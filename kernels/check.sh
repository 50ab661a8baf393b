#!/usr/bin/env bash
# Compiles every kernel for sm_80 and sm_90 and prints what ptxas says of each: registers, bytes spilled,
# bytes of static shared memory. Needs nvcc, no GPU. A spill or a failure to compile is an error.
#
#   kernels/check.sh [FILE.cu ..]
set -euo pipefail
cd "$(dirname "$0")"
[ $# -gt 0 ] || set -- *.cu
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for arch in sm_80 sm_90; do
  for file in "$@"; do
    if ! nvcc --cubin -arch=$arch -std=c++17 --fmad=false -Xptxas -v -o "$out/cubin" "$file" 2>"$out/log"; then
      cat "$out/log" >&2
      exit 1
    fi
    awk -v arch=$arch '
      /Compiling entry function/ { split($0, part, "\x27"); name = part[2]; spill = "" }
      /bytes spill stores/ && spill == "" { spill = $5 + $9 }
      /Used [0-9]+ registers/ {
        match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
        shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH - 11) : 0
        printf "%s %-40s %4d registers %4d spilled %6d shared\n", arch, name, registers, spill, shared
        if (spill > 0) failed = 1
      }
      END { exit failed }' "$out/log"
  done
done
