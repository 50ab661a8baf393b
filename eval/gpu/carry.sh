#!/usr/bin/env bash
# carry.sh OUT: builds calm and its tests with the feature `cuda`, and puts them with all that run.sh needs into the
# folder OUT. Needs nvcc (CUDA_HOME), cargo and python3, no GPU. Ends with an error above 60 MiB.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 OUT" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
limit=60
: "${CUDA_HOME:?the folder of a CUDA toolkit (bin/nvcc)}"
export CUDA_PATH=${CUDA_PATH:-$CUDA_HOME} PATH=$CUDA_HOME/bin:$PATH
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tests" "$work/eval"
cd "$root"

# A folder of its own: the same kernels compiled by kernels/host-device would count as up to date.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/gpu}
# One set of packages in both commands, so that their dependencies are built once.
packages=(-p calm-cli -p calm-kernels -p calm-lm -p calm-bench --features calm-cli/cuda)
filters=(--lib --test operators --test models)
cargo build --release "${packages[@]}" --bin calm --message-format=json-render-diagnostics > "$work/build.json"
cargo test --release --no-run "${packages[@]}" "${filters[@]}" --message-format=json-render-diagnostics > "$work/tests.json"

# "name path" of each executable that is carried.
python3 - "$work/build.json" "$work/tests.json" > "$work/executables" <<'PYTHON'
import json
import re
import sys

for file in sys.argv[1:]:
    for line in open(file):
        about = json.loads(line) if line.startswith("{") else {}
        path, target = about.get("executable"), about.get("target", {})
        if not path or target["name"] == "calm_cli":  # its unit tests do not compute on a device
            continue
        package = re.search(r"(calm-[a-z]+)[#@]", about["package_id"])
        kind = "unit" if "lib" in target["kind"] else target["name"]
        print("calm" if not about["profile"]["test"] else f"tests/{package[1] if package else 'calm'}.{kind}", path)
PYTHON
while read -r name path; do
    strip -o "$work/$name" "$path"
    chmod 755 "$work/$name"
done < "$work/executables"
! grep -q 'calm host device: module' "$work/calm" ||
    { echo "error: the kernels in $CARGO_TARGET_DIR were made by kernels/host-device; name another CARGO_TARGET_DIR" >&2; exit 1; }
[ -x "$work/calm" ] || { echo "error: cargo named no executable calm" >&2; exit 1; }
rm "$work"/*.json "$work/executables"

python3 "$here/text.py" datasets/crates.yaml "$work/text"
cp -r eval/peers eval/golden "$work/eval"
find "$work/eval" -name __pycache__ -prune -exec rm -rf {} +
commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || commit="$commit, changed"
printf '%s\n' "$commit" > "$work/commit"
"$CUDA_HOME/bin/nvcc" --version | tail -n 1 > "$work/nvcc"

# A large dictionary: the executables have most of their code in common.
tar -C "$work" --sort=name --owner=0 --group=0 -cf - . | xz -T1 --lzma2=preset=6,dict=192MiB > "$out/carried.tar.xz"
cp "$here/run.sh" "$here/summary.py" "$out"
mib=$(( ($(du -sk "$out" | cut -f1) + 1023) / 1024 ))
echo "$out: $mib MiB ($(find "$work/tests" -type f | wc -l) test programs, commit $commit)"
[ "$mib" -le "$limit" ] || { echo "error: more than $limit MiB" >&2; exit 1; }
