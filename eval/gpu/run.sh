#!/usr/bin/env bash
# run.sh [--quick] [--steps NAMES] [--size NAME] [--compare LIST] [--total SECONDS] [CARRIED] [OUT]
#
# Tests and measures calm on this machine's first GPU with what carry.sh made, in under ten minutes (README.md).
# CARRIED: the folder with carried.tar.xz, by default this script's own. OUT: where summary.md and logs.tar.gz go, by
# default ./gpu-results. Needs a driver, cuBLAS and cuRAND (also those of Python packages) and python3; the comparison
# needs PyTorch. A step that fails or takes too long is noted, and the next one follows.
set -euo pipefail

usage() {
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    echo "steps: doctor,tests,speed,training,operators"
    echo "LIST of --compare, in place of README.md's table: SIZE WORK PEERS,… such as 'calm-m lm tuned,calm-m energy all'"
    exit "$1"
}

# Seconds of: everything, the training runs at the end, one of them, the doctor.
total=570 reserve=150 length=45 look=4
quick='' steps=doctor,tests,speed,training,operators size='' compare=''
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=1 total=240 reserve=80 length=12 look=1 ;;
        --steps) steps=${2:?}; shift ;;
        --size) size=${2:?}; shift ;;
        --compare) compare=${2:?}; shift ;;
        --total) total=${2:?}; shift ;;
        -h | --help) usage 0 ;;
        -*) usage 2 >&2 ;;
        *) break ;;
    esac
    shift
done
[ $# -le 2 ] || usage 2 >&2
here=$(cd "$(dirname "$0")" && pwd)
carried=${1:-$here}
mkdir -p "${2:-gpu-results}"
out=$(cd "${2:-gpu-results}" && pwd)
for name in ${steps//,/ }; do
    case $name in doctor | tests | speed | training | operators) ;; *) usage 2 >&2 ;; esac
done

work=$(mktemp -d)
logs=$work/logs
mkdir -p "$work/c" "$logs/speed" "$logs/tests" "$logs/training"
background=() # process groups
stop_background() {
    local group
    for group in "${background[@]}"; do
        kill -- "-$group" 2> "$work/kill.log" || true
        wait "$group" 2> "$work/kill.log" || true
    done
    background=()
}
trap 'stop_background; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

tar -C "$work/c" -xJf "$carried/carried.tar.xz" 2> "$work/tar.log" ||
    python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' \
        "$carried/carried.tar.xz" "$work/c" ||
    { echo "error: $carried/carried.tar.xz cannot be unpacked; carry.sh makes it" >&2; exit 1; }
calm=$work/c/calm
peers=$work/c/eval/peers/pytorch
cp "$work/c/commit" "$work/c/nvcc" "$logs"
date -u +%Y-%m-%dT%H:%M:%SZ > "$logs/date"

# CUDA's libraries may lie only in Python packages (nvidia/cu13/lib, nvidia/cublas/lib, …), or in usual places that the
# loader does not search.
libraries=$(python3 - <<'PYTHON' || true
import sys
from pathlib import Path

found = []
for root in dict.fromkeys(p for p in sys.path if p.endswith("-packages")):
    found += [d for d in sorted(Path(root, "nvidia").glob("*/lib")) if any(d.glob("lib*.so*"))]
found += [d for d in map(Path, ("/usr/local/cuda/lib64", "/usr/local/nvidia/lib64")) if d.is_dir()]
print(":".join(map(str, found)))
PYTHON
)
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries
# What is compiled once (PyTorch's graphs, PTX) is there for the next process.
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TORCHINDUCTOR_FX_GRAPH_CACHE=1 TORCHINDUCTOR_AUTOGRAD_CACHE=1
export TRITON_CACHE_DIR=$work/triton CUDA_CACHE_PATH=$work/ptx

if ! "$calm" doctor --device cuda:0 --seconds 0.1 --format json > "$work/doctor.json" 2> "$work/doctor.log"; then
    reason=$(sed -n 's/^error: //p' "$work/doctor.log")
    echo "error: no GPU can be used here: ${reason:-$(tail -n 1 "$work/doctor.log")}" >&2
    exit 1
fi

wanted() { case ,$steps, in *",$1,"*) return 0 ;; *) return 1 ;; esac }

# Keeps what there is, so that a run that is stopped from outside leaves it.
save() {
    tar -C "$work" -czf "$out/logs.part" logs && mv "$out/logs.part" "$out/logs.tar.gz"
    python3 "$here/summary.py" "$logs" > "$out/summary.part" && mv "$out/summary.part" "$out/summary.md"
}

# step NAME SECONDS FILE COMMAND...: with a time limit, standard output and error to FILE.log; with `json:FILE` standard
# output to FILE.json alone. 124 in steps.tsv is a limit that was reached.
step() {
    local name=$1 limit=$2 file=$3 left=$((total - SECONDS)) started=$SECONDS status=0
    shift 3
    ((limit < left)) || limit=$left
    if ((limit < 3)); then
        status=skipped
    elif [ "${file#json:}" != "$file" ]; then
        file=$logs/${file#json:}
        timeout -k 10 -s "${stop_by:-TERM}" "$limit" "$@" > "$file.json" 2> "$file.log" || status=$?
    else
        timeout -k 10 "$limit" "$@" > "$logs/$file.log" 2>&1 || status=$?
    fi
    printf '%s\t%s\t%s\t%s\n' "$name" "$status" $((SECONDS - started)) "$limit" >> "$logs/steps.tsv"
    echo "$(printf '%4d' $SECONDS) s  $name: $([ "$status" = 0 ] && echo done || echo "$status")"
    save
}

has_torch=''
if python3 -c 'import torch; assert torch.cuda.is_available()' 2> "$logs/torch.log"; then
    has_torch=1
    python3 -c 'import torch; print(torch.__version__)' > "$logs/torch"
fi

# ---------------------------------------------------------------- (a) what is there

if wanted doctor; then
    if command -v nvidia-smi > "$work/which.log"; then
        step "nvidia-smi" 20 nvidia-smi nvidia-smi
        step "nvidia-smi, clocks" 20 clocks nvidia-smi -q -d CLOCK,POWER,TEMPERATURE
    fi
    step "doctor" 40 json:doctor "$calm" doctor --device cuda:0 --seconds "$look" --format json
fi

# ---------------------------------------------------------------- what is compared: size work runners rounds limit

if [ -n "$compare" ]; then
    IFS=, read -ra pieces <<< "$compare"
elif [ -n "$size" ]; then
    pieces=("$size energy all" "$size lm all" "$size attention tuned" "$size generate all" "$size brier_k4 all")
elif [ -n "$quick" ]; then
    pieces=("calm-m energy all" "calm-m lm tuned" "calm-m attention tuned")
else
    pieces=("calm-m energy all" "calm-m lm all" "calm-m attention tuned" "baseline-s baseline tuned" "calm-m ae tuned"
        "calm-l lm tuned" "calm-m generate all" "calm-m brier_k4 all")
fi

# PyTorch compiles while the tests run, where nothing is timed: in two chains, one with what takes most memory, so that
# the tests have enough.
warm() {
    local piece
    for piece in "$@"; do
        # shellcheck disable=SC2086 # size and work
        set -- $piece
        [ "$2" = attention ] || python3 "$peers/bench.py" --peer tuned --size "$1" --what "$2" --device cuda \
            --precision bf16 --seconds 0.01 || true
    done
}
export -f warm
if [ -n "$has_torch" ] && wanted speed && wanted tests; then
    for chain in large small; do
        mine=()
        for piece in "${pieces[@]}"; do
            case $piece in *" lm "* | *" ae "*) kind=large ;; *) kind=small ;; esac
            [ "$kind" != "$chain" ] || mine+=("$piece")
        done
        peers=$peers setsid bash -c 'warm "$@"' warm "${mine[@]}" > "$logs/speed/warm-$chain.log" 2>&1 &
        background+=($!)
    done
fi

# ---------------------------------------------------------------- (b) does it compute the same

run_test() { # PROGRAM MODULE LOGS: a carried program's tests; of one module, `-` for all
    local status=0 name tests=()
    name=$(basename "$1")
    if [ "$2" != - ]; then
        tests=("$2::") name=$name.$2
    fi
    (cd "$(dirname "$1")" && CALM_TEST_GPU=1 timeout --foreground -k 5 90 "$1" "${tests[@]}") > "$3/$name.log" 2>&1 || status=$?
    printf '%s\t%s\n' "$name" "$status" >> "$3/status.tsv"
}
run_sanitizer() { # TOOL PROGRAM MODULE LOGS: what the module names `gpu` among its tests
    local status=0 name=$1.$3 tests
    mapfile -t tests < <("$2" --list | sed -n "s/^\($3::.*gpu.*\): test$/\1/p")
    if [ ${#tests[@]} = 0 ]; then
        printf '%s\tno tests\n' "$name" >> "$4/status.tsv"
        return
    fi
    CALM_TEST_GPU=1 timeout --foreground -k 5 80 compute-sanitizer --tool "$1" --error-exitcode 9 "$2" --exact "${tests[@]}" \
        --test-threads=1 > "$4/$name.log" 2>&1 || status=$?
    printf '%s\t%s\n' "$name" "$status" >> "$4/status.tsv"
}
modules_of() { # PROGRAM: the files of its tests
    "$1" --list | sed -n 's/^\([a-z_0-9]*\)::.*: test$/\1/p' | sort -u
}
export -f run_test run_sanitizer
if wanted tests; then
    # shellcheck disable=SC2016 # expanded by the inner shell
    {
        for program in "$work"/c/tests/*; do
            case ${program##*/} in
                # Side by side, file by file.
                *.operators)
                    modules=$(modules_of "$program") || modules=-
                    printf 'run_test %s %s "$0"\n' $(printf "$program %s\n" ${modules:--})
                    ;;
                # The other files compute on the CPU alone.
                *.models) printf 'run_test %s gpu "$0"\n' "$program" ;;
                *) printf 'run_test %s - "$0"\n' "$program" ;;
            esac
        done
        if [ -z "$quick" ] && command -v compute-sanitizer > "$work/which.log"; then
            for module in energy_score cross_entropy attention; do
                for tool in memcheck racecheck; do
                    echo "run_sanitizer $tool $work/c/tests/calm-kernels.operators $module \"\$0\""
                done
            done
        fi
        if [ -n "$has_torch" ]; then
            echo "cd $peers && python3 check.py ../../golden --no-compile --device cuda > \$0/peers.log 2>&1"
            echo "cd $peers && python3 check.py ../../golden --case energy --peer tuned --device cuda > \$0/peers-compiled.log 2>&1"
        fi
    } > "$work/jobs"
    step "tests" 120 tests xargs -a "$work/jobs" -d '\n' -P 6 -I '{}' bash -c '{}' "$logs/tests"
fi
for job in "${background[@]}"; do
    while kill -0 "$job" 2> "$work/kill.log" && ((SECONDS < total / 4)); do sleep 1; done
done
stop_background

# ---------------------------------------------------------------- (c) how fast, beside PyTorch on the same card

if wanted speed; then
    until=$total
    if wanted training; then
        until=$((total - reserve))
    fi
    for piece in "${pieces[@]}"; do
        read -r name what who <<< "$piece"
        limit=90 left=$((until - SECONDS))
        ((limit < left)) || limit=$left
        if ((limit < 15)); then
            printf '%s\tskipped\t0\t0\n' "speed: $name $what" >> "$logs/steps.tsv"
            continue
        fi
        runners=calm
        [ -z "$has_torch" ] || runners=calm,pytorch-tuned
        [ -z "$has_torch" ] || [ "$who" != all ] || runners=calm,pytorch-tuned,pytorch-eager
        step "speed: $name $what" "$limit" "speed/$name-$what" python3 "$peers/compare.py" --size "$name" \
            --what "$what" --runners "$runners" --calm "$calm" --device cuda --precision bf16 --stay --go-on \
            --rounds "$([ -n "$quick" ] && echo 3 || echo 5)" --seconds 1 --limit $((limit - 8)) \
            --json "$logs/speed/$name-$what.json"
    done
fi

# ---------------------------------------------------------------- (d) does it learn

text=$work/c/text
rows=16 least=120 scored=()
if [ "$size" = tiny ]; then # do the scripts work?
    rows=2 least=12
    scored=(--set eval.documents=2 --set eval.chunks_per_document=8 --set train.lm.context=16 --set train.lm.warmup_steps=5)
elif [ -n "$quick" ]; then
    scored=(--set eval.documents=20)
fi
common=(--set "data.source={path: $text/train.jsonl}" --set "data.validation={path: $text/validation.jsonl}"
    --set precision=bf16 --set train.lm.batch_rows="$rows" --device cuda:0 --cache "$work/cache" "${scored[@]}")

# Steps that fit, by the speed of a run with random weights of the same size; 256 tokens a row.
train() { # NAME CONFIG MORE...
    local name=$1 config=$2 rate count
    shift 2
    step "training: $name, its speed" 40 "training/$name-init" \
        "$calm" init --config "$config" --out "$work/probe-$name" "${common[@]}" "$@"
    step "training: $name, its speed" 40 "json:training/$name-speed" \
        "$calm" bench --run "$work/probe-$name" --draws 0 --seconds 2 --format json --device cuda:0 --cache "$work/cache"
    rate=$(sed -n 's/.*"training": \([0-9]*\).*/\1/p' "$logs/training/$name-speed.json")
    count=$((${rate:-0} * length / (rows * 256)))
    ((count >= least)) || count=$least
    ((count <= 20000)) || count=20000
    stop_by=INT step "training: $name" $((2 * length + 40)) "json:training/$name" \
        "$calm" train --config "$config" --out "$work/$name" --set train.lm.steps="$count" --format json \
        "${common[@]}" "$@"
    # A run that was stopped has a checkpoint, but no scores.
    [ -s "$logs/training/$name.json" ] || [ ! -d "$work/$name/lm" ] || step "training: $name, scores" 30 \
        "json:training/$name-scores" "$calm" eval brierlm --run "$work/$name" --device cuda:0 --format json \
        --cache "$work/cache"
    for file in metrics.jsonl run.json config.yaml; do
        [ ! -f "$work/$name/$file" ] || cp "$work/$name/$file" "$logs/training/$name-$file"
    done
    save
}
first=()
[ "$size" != tiny ] || first=(--set train.autoencoder.steps=12 --set train.autoencoder.batch_rows=2
    --set train.autoencoder.context=16 --set train.autoencoder.warmup_steps=4)
if wanted training; then
    train calm-k4 k4 "${first[@]}"
    train baseline baseline
fi

# ---------------------------------------------------------------- if time is left: each operator beside its composition

if wanted operators && [ -z "$quick" ]; then
    step "operators" 90 json:operators "$calm" bench --size "${size:-calm-m}" --what matrix,operators --seconds 1 \
        --device cuda:0 --precision bf16 --format json
fi

step "end" 5 end true
echo "results in $out: summary.md, logs.tar.gz"
