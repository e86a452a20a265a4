#!/bin/bash
# The study of real music in docs/does_it_work.md: other seeds, segment lengths, numbers of tracks, and the untrained codec.
# Each row is the shorter version of the experiment (demo/run_experiment.sh) with one or two changes. It takes hours on 2 cores.
# Run it again to resume.
#
#   bash benchmarks/study_real_music.sh [MUSIC] [OUTPUT]
set -euo pipefail
cd "$(dirname "$0")/.."

music=${1:-music} out=${2:-study_real_music}
processes=$(python -c 'import torch; from common.machine import available_cores
print(torch.cuda.device_count() or min(4, available_cores()))')

# Link N of the tracks that are long enough, spread over the packages, into a folder.
few_tracks() {
    local folder="$out/music_$1"
    [ -d "$folder" ] || awk -F '\t' '$2 == "train" || $2 == "val" { print $3 }' "$out/4s/dataset_pairs_wav/metadata.txt" |
        sort -u | awk -v n="$1" '{ track[NR] = $0 } END { for (i = 0; i < n; i++) print track[1 + int(i * NR / n)] }' |
        while IFS= read -r source; do
            mkdir -p "$folder/$(dirname "$source")"
            ln -sf "$(realpath "$music/$source")" "$folder/$source"
        done
}

row() { # NAME DATASET MUSIC SEGMENT_S CODEC SEED
    local dataset="$out/$2/dataset_pairs_wav" folder="$out/$1"
    printf '\n== %s\n' "$1"
    [ ! -f "$folder/results_simple/results.json" ] || return 0
    python create_dataset_pairs_wav.py --input_dir "$3" --output_dir "$dataset" --segment_duration "$4"
    python train_simple_ddp.py --dataset_dir "$dataset" --checkpoint_dir "$folder/checkpoints_simple" \
        --encodec_weights "$5" --seed "$6" --num_processes "$processes" --epochs 8 --lr 5e-4
    python evaluate_continuation.py --dataset_dir "$dataset" --checkpoint "$folder/checkpoints_simple/best_model.pt" \
        --encodec_weights "$5" --output_dir "$folder/results_simple" --num_examples 1 --max_sound_pairs 20
}

row 4s 4s "$music" 4 demo 42
few_tracks 60
few_tracks 20
row 1s 1s "$music" 1 demo 42
row 4s_seed_43 4s "$music" 4 demo 43
row 4s_60_tracks 4s_60_tracks "$out/music_60" 4 demo 42
row 4s_seed_44 4s "$music" 4 demo 44
row 4s_20_tracks 4s_20_tracks "$out/music_20" 4 demo 42
row 4s_60_tracks_untrained 4s_60_tracks "$out/music_60" 4 untrained 42

python - "$out" <<'TABLE'
import json
import sys
from pathlib import Path


def cell(skill, low, high):
    return f"{skill:+.2f} ({low:+.2f} to {high:+.2f})"


print("| run | pairs | tracks | the model | the best baseline | embedding 0.1 s ahead | log-mel a segment ahead | outcome |")
print("|---|---|---|---|---|---|---|---|")
for path in sorted(Path(sys.argv[1]).glob("*/results_simple/results.json")):
    results = json.loads(path.read_text())
    rows, horizon, data = results["rows"], results["horizon"], results["dataset"]
    skills = {name: cell(row["track_skill"], *row["skill_interval"]) for name, row in rows.items()}
    baselines = ("loop", "ridge", "clip_ridge", "input_mean", "position_mean", "last_moment", "repeat_input")
    best = max(baselines, key=lambda name: rows[name]["track_skill"])
    near = min(range(len(horizon["seconds"])), key=lambda i: abs(horizon["seconds"][i] - 0.107))
    ahead = {
        curve: cell(*(horizon[curve][key][i] for key in ("skill", "low", "high")))
        for curve, i in (("embedding", near), ("log_mel", -1))
    }
    print(
        f"| {path.parent.parent.name} | {data['pairs']} | {data['tracks']} | {skills['model']} "
        f"| {rows[best]['label']}, {skills[best]} | {ahead['embedding']} | {ahead['log_mel']} "
        f"| {results['verdict']['outcome']} |"
    )
TABLE
