#!/bin/bash
# The original experiment at full size on the music in music/. Started by `make experiment`. Run it again to resume.
# QUICK=1 is a shorter version: segments of 4 s instead of 16, 8 epochs instead of up to 200, and a higher learning rate.
set -euo pipefail
cd "$(dirname "$0")/.."

music=${MUSIC:-music}
if [ -n "${QUICK:-}" ]; then
    out=experiment_quick
    segments=(--segment_duration 4)
    epochs=8
    training=(--epochs "$epochs" --lr 5e-4)
else
    out=experiment
    segments=()
    epochs=200
    training=()
fi

step() { printf '\n== %s\n' "$*"; }

if [ ! -d "$music" ]; then
    echo "$music: no such folder; run make music, or put your own music into $music/" >&2
    exit 1
fi

step "The codec's weights"
weights=${ENCODEC_WEIGHTS:-pretrained}
# Failures are hidden, because step 2 tests the setup again with the weights that are used.
if ! python test_simple_setup.py --encodec_weights "$weights" >/dev/null 2>&1; then
    weights=demo
    cat <<'BANNER'
*** EnCodec's published weights could not be loaded or downloaded, or another check failed (see step 2). This uses the
*** small codec in demo/, which was trained on synthetic music. The verdict is about its embeddings, not about EnCodec's.
BANNER
fi
echo "codec: $weights"

step "1. Create the dataset: decoding 14 hours of music takes about 2 minutes on 2 cores"
python create_dataset_pairs_wav.py --input_dir "$music" --output_dir "$out/dataset_pairs_wav" "${segments[@]}"

step "2. Test the setup"
python test_simple_setup.py --encodec_weights "$weights" --dataset_dir "$out/dataset_pairs_wav"

step "3. Train. Encoding comes first and shows the time left"
# One process per GPU, or without a GPU one per core, at most four as in the original experiment.
processes=$(python -c 'import torch; from common.machine import available_cores
print(torch.cuda.device_count() or min(4, available_cores()))')
python demo/step_time.py --dataset_dir "$out/dataset_pairs_wav" --num_processes "$processes" --epochs "$epochs"
python train_simple_ddp.py --dataset_dir "$out/dataset_pairs_wav" --checkpoint_dir "$out/checkpoints_simple" \
    --encodec_weights "$weights" --num_processes "$processes" "${training[@]}"

step "4. Continue three validation songs"
songs=()
while IFS= read -r source; do
    songs+=("$music/$source")
done < <(awk -F '\t' '$2 == "val" && !seen[$3]++ { print $3 }' "$out/dataset_pairs_wav/metadata.txt" | head -n 3)
python generate_continuation.py "${songs[@]}" --checkpoint "$out/checkpoints_simple/best_model.pt" \
    --output_dir "$out/continuations" --encodec_weights "$weights"

step "5. Does it work? This takes up to 10 minutes on 2 cores"
python evaluate_continuation.py --checkpoint "$out/checkpoints_simple/best_model.pt" \
    --dataset_dir "$out/dataset_pairs_wav" --output_dir "$out/results_simple" --encodec_weights "$weights"

step "Results to listen to and look at"
ls "$out"/continuations/*.wav
echo "$out/results_simple/report.html"
