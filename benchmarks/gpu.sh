#!/usr/bin/env bash
# On a machine with a GPU: run the GPU tests and every benchmark at GPU sizes, and write the tables to a folder.
#
#   benchmarks/gpu.sh MODEL DATA [OUT]
#
#   MODEL  a small base with its tokenizer (a folder), for evaluation and for the tokenizer of the random 8B base
#   DATA   a folder with gsm8k/ (train.jsonl, test.jsonl) and mmlu/ (dev/, test/)
#   OUT    where the tables go; benchmarks/results/gpu by default
#
# DRY_RUN=1 runs every benchmark with tiny sizes on the CPU, without the tests, compilation and padded rows. PYTHON names
# the interpreter.
# A step that fails does not stop the others; the script then ends with 1 and names them.
set -uo pipefail

model=${1:?usage: benchmarks/gpu.sh MODEL DATA [OUT]}
data=${2:?usage: benchmarks/gpu.sh MODEL DATA [OUT]}
here=$(cd "$(dirname "$0")" && pwd)
out=${3:-$here/results/gpu}
python=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
failed=()

# run NAME PROGRAM ARGUMENTS...: the program's table goes to OUT/NAME.md, its messages to OUT/NAME.log
run() {
    local name=$1
    shift
    echo "== $name: $*" >&2
    if ! "$python" "$here/$1" "${@:2}" --out "$out/$name.md" >"$out/$name.log" 2>&1; then
        failed+=("$name")
        tail -n 5 "$out/$name.log" >&2
    fi
}

if [ -n "${DRY_RUN:-}" ]; then
    device=cpu dtype=float32 base_shape=tiny
    adapter_shapes=(tiny) rounds=1
    loss=(--tokens 64 --hidden 32 --vocabulary 256)
    train=(--tokens 50 --batch 2 --length 128 --examples 20 --max-steps 60 --rounds 1 --threads 1)
    evaluation=(--subjects 1 --rounds 1 --threads 1 --parts letters)
    packings=(--packing)
else
    device=cuda dtype=bfloat16 base_shape=llama-3-8b
    adapter_shapes=(llama-7b wide small) rounds=15
    loss=(--tokens 16384 --hidden 4096 --vocabulary 128256)
    train=(--tokens 400000 --batch 4 --length 4096 --examples 7000 --max-steps 500 --rounds 1 --learning-rate 2e-4)
    evaluation=(--subjects 10 --rounds 3)
    packings=("" --packing)
    "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || {
        echo "no GPU is visible to $python; DRY_RUN=1 tries the commands on a CPU" >&2
        exit 2
    }
    echo "== tests" >&2
    (cd "$here/.." && "$python" -m pytest -o addopts= -q tests/test_devices.py) >"$out/tests.log" 2>&1 ||
        failed+=(tests)
    tail -n 1 "$out/tests.log"
fi

for shape in "${adapter_shapes[@]}"; do
    run "adapter_$shape" adapter.py --shape "$shape" --dtype "$dtype" --device "$device" --rounds "$rounds"
done
if [ -z "${DRY_RUN:-}" ]; then # compiling takes minutes on a CPU
    run adapter_compiled adapter.py --shape llama-7b --dtype "$dtype" --device "$device" --rounds "$rounds" --compile
fi
run loss loss.py --device "$device" --dtype "$dtype" "${loss[@]}"
run evaluation evaluation.py --model "$model" --mmlu "$data/mmlu" --dtype "$dtype" --device "$device" "${evaluation[@]}"
if "$python" "$here/random_base.py" --shape "$base_shape" --tokenizer "$model" --out "$work/base" >"$out/base.log" 2>&1; then
    for packing in "${packings[@]}"; do
        # shellcheck disable=SC2086  # an empty value is no argument
        run "end_to_end${packing/--/_}" end_to_end.py --model "$work/base" --data "$data/gsm8k" --dtype "$dtype" \
            --device "$device" "${train[@]}" $packing
    done
else
    failed+=(base)
    tail -n 5 "$out/base.log" >&2
fi

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; see the logs in $out" >&2
    exit 1
fi
echo "tables in $out"
