#!/usr/bin/env bash
# build.sh OUT: builds the host device into OUT, a folder that serves as CUDA_HOME (README.md).
# CXX and HOST_DEVICE_FLAGS (for instance -fsanitize=undefined) may be set; only what changed is compiled.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 OUT" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/bin" "$1/lib" "$1/include" "$1/objects"
out=$(cd "$1" && pwd)
cxx=${CXX:-g++}
flags=(-std=c++17 -O2 -fPIC -fvisibility=hidden -DHOST_DEVICE -Wall -Wextra -pthread ${HOST_DEVICE_FLAGS:-})
if grep -qw avx2 /proc/cpuinfo && grep -qw fma /proc/cpuinfo; then
    flags+=(-march=x86-64-v3)
fi

# Everything is compiled again when a header or the flags change.
stamp=$(cat "$here"/*.h "$here"/../*.cuh "$here/build.sh"; echo "$cxx ${flags[*]}")
if [ "$(cat "$out/objects/stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -f "$out"/objects/*.o
fi

compile() { # object source flags...
    local object=$out/objects/$1 source=$2
    shift 2
    if [ "$source" -nt "$object" ]; then
        "$cxx" "${flags[@]}" "$@" -x c++ -c "$source" -o "$object"
    fi
}

# A product and a sum stay two roundings, as in nvcc --fmad=false; cuBLAS fuses them.
driver=()
for source in "$here"/{driver,driver_memory,driver_launch,memory,stream,parallel}.cpp "$here"/candle_*.cpp \
    "$here"/../*.cu; do
    object=$(basename "${source%.*}").o
    compile "$object" "$source" -ffp-contract=off
    driver+=("$out/objects/$object")
done
compile cublas.o "$here/cublas.cpp" -ffp-contract=fast -O3
compile curand.o "$here/curand.cpp" -ffp-contract=off
nccl=()
for name in nccl nccl_comm nccl_room nccl_calls; do
    compile "$name.o" "$here/$name.cpp" -ffp-contract=off -O3
    nccl+=("$out/objects/$name.o")
done
for name in cuda cublas cublasLt curand nvrtc cudart nccl; do
    compile "unsupported_$name.o" "$here/unsupported.cpp" "-DLIBRARY_$name"
done
printf '%s' "$stamp" > "$out/objects/stamp"

library() { # name version objects...
    local name=$1 file=lib$1.so.$2
    shift 2
    # Not replaced in place: a program that runs keeps the old file.
    rm -f "$out/lib/$file"
    "$cxx" -shared -pthread -Wl,--no-undefined -Wl,-soname,"$file" -Wl,-rpath,"\$ORIGIN" -o "$out/lib/$file" \
        "$out/objects/unsupported_$name.o" "$@" ${HOST_DEVICE_FLAGS:-}
    ln -sfn "$file" "$out/lib/lib$name.so"
}
library cuda 1 "${driver[@]}"
cuda=(-L"$out/lib" -lcuda)
library cublas 13 "$out/objects/cublas.o" "${cuda[@]}"
library cublasLt 13 "${cuda[@]}"
library curand 10 "$out/objects/curand.o" "${cuda[@]}"
library nvrtc 13 "${cuda[@]}"
library nccl 2 "${nccl[@]}" "${cuda[@]}"
library cudart 13 "${cuda[@]}"
ln -sfn lib "$out/lib64"
install -m 755 "$here/nvcc" "$out/bin/nvcc"
echo "host device in $out"
