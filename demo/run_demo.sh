#!/bin/bash
# The whole pipeline on synthetic music, in the order of the README. Started by `make demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
out=demo/output
rm -rf demo/music "$out"

step() { printf '\n== %s\n' "$*"; }

step "The codec's weights"
weights=${ENCODEC_WEIGHTS:-pretrained}
# Failures are hidden, because step 2 tests the setup again with the weights that the demo uses.
if setup=$(python test_simple_setup.py --encodec_weights "$weights" 2>&1); then
    echo "$setup"
else
    weights=demo
    cat <<'BANNER'
*** EnCodec's published weights could not be loaded or downloaded, or another check failed (see step 2). The demo uses
*** the small codec in demo/, which was trained on synthetic music. It sounds duller than EnCodec, but you can still hear
*** what the model predicted.
BANNER
fi

step "Music: demo/music, 32 songs of eight riffs each; after every riff a coin decides between two others"
python demo/make_music.py --output_dir demo/music

step "1. Create the dataset: segments of 4 s (one riff) instead of 16 s, so that the demo takes minutes"
# A third of the songs are for validation, because the verdict needs ten.
python create_dataset_pairs_wav.py --input_dir demo/music --output_dir "$out/dataset_pairs_wav" \
    --segment_duration 4 --max_pairs 224 --val_pairs 70

step "2. Test the setup"
python test_simple_setup.py --encodec_weights "$weights" --dataset_dir "$out/dataset_pairs_wav"

step "3. Train briefly: 2 processes, 16 epochs, and a higher learning rate than the default"
python train_simple_ddp.py --dataset_dir "$out/dataset_pairs_wav" --checkpoint_dir "$out/checkpoints_simple" \
    --encodec_weights "$weights" --num_processes 2 --batch_size 4 --epochs 16 --lr 1e-3

step "4. Continue a song"
ls -lh "$out/checkpoints_simple"
python generate_continuation.py demo/music/song_00.wav --checkpoint "$out/checkpoints_simple/best_model.pt" \
    --output_dir "$out/continuations" --encodec_weights "$weights"

step "5. Does it work?"
python evaluate_continuation.py --checkpoint "$out/checkpoints_simple/best_model.pt" \
    --dataset_dir "$out/dataset_pairs_wav" --output_dir "$out/results_simple" --encodec_weights "$weights" \
    --num_examples 4 --max_sound_pairs 20
echo "This music was made to be learnable: the riffs repeat, and only the coin flips and the melody are random. Real music may differ."

step "Results to listen to and look at"
ls "$out"/continuations/*.wav
echo "$out/results_simple/report.html"
