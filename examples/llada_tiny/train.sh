#!/bin/sh
# Trains the bundled model from its data to its folder; started again, it goes on where it was stopped or killed.
#   examples/llada_tiny/train.sh [RUNS]      RUNS: folder of the runs, `runs` unless given; the model goes to RUNS/llada-tiny
# Hours on one core: set OMP_NUM_THREADS to the cores it may have. MACHINE says in the card what it was trained on.
set -eu
cd "$(dirname "$0")/../.."
runs=${1:-runs}
here=examples/llada_tiny
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$runs"
# The questions are written last.
test -e "$runs/tiny-facts/questions.jsonl" || "$python" $here/prepare_facts.py --output "$runs/tiny-facts"
for stage in first last baseline; do
    # The weights beside the checkpoints are written at the end of a stage.
    test -e "$runs/tiny-$stage/model.safetensors" && continue
    script=learn.py more=""
    test $stage = baseline && script=baseline.py
    test $stage = last && more="--model $runs/tiny-first"
    "$python" $here/$script --config $here/$stage.yaml --facts "$runs/tiny-facts" --output_dir "$runs/tiny-$stage" $more
done
"$python" $here/finish.py --run "$runs/tiny-first" "$runs/tiny-last" --facts "$runs/tiny-facts" \
    --output "$runs/llada-tiny" --record "$runs/records" --machine "${MACHINE:-One machine, hours unrecorded}"
"$python" -m experiments.order --model "$runs/llada-tiny" --baseline "$runs/tiny-baseline" --output "$runs/order"
