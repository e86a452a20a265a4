"""Music whose best possible prediction is known: does training find it, and is the verdict right?

    make study                             # three worlds with three seeds each: about half an hour on 2 cores
    python benchmarks/study_planted.py --seeds 1 --worlds coin

A track is a walk over eight clips of noisy tones, with added noise at −60 dB. In the world `coin`, a coin decides
between two successors of a clip. In `chain` there is one successor. In `independent`, every segment is new. The mean of
a clip's successors is E[next | current] in any codec, so its skill is the best that any model can reach. The datasets
are written directly, because create_dataset_pairs_wav.py does not use the same audio twice.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from audio.frozen_encodec import load_frozen_encodec
from audio.segments import to_pcm16, write_wav
from benchmarks.measure import run_python
from common.arguments import file_path, number, parse_settings, seed_setting, setting
from common.errors import run_script
from dataset.pairs import PairRow, write_metadata
from dataset_wav_pairs import WavPairsDataset, prepare_cache

RATE = 24000
NUM_CLIPS = 8
SEGMENTS = 7  # per track: six pairs
TRACKS = {"train": 96, "val": 12}
WORLDS = {"coin": 2, "chain": 1, "independent": 0}  # successors of a clip
REQUIRED = {"coin": 0.90, "chain": 0.95}  # share of the best possible skill


@dataclass
class Settings:
    worlds: list[str] = setting(tuple(WORLDS), "worlds to study (default: all)", nargs="+", choices=tuple(WORLDS))  # noqa: RUF009
    seeds: int = setting(3, "number of seeds per world", type=number(int, at_least=1))
    epochs: int = setting(24, "epochs of each training run", type=number(int, at_least=1))
    lr: float = setting(1e-3, "learning rate", type=number(float, above=0))
    seed: int = seed_setting("the first dataset of each world")
    encodec_weights: str = setting("untrained", "untrained, demo, pretrained, or a file", type=file_path)


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    failed = False
    print("| world | seed | best possible skill | reached | share | verdict | linear map | loop |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for world in settings.worlds:
        for seed in range(settings.seed, settings.seed + settings.seeds):
            with tempfile.TemporaryDirectory() as folder:
                found = study(world, seed, Path(folder), settings.epochs, settings.lr, settings.encodec_weights)
            share = "–" if found["share"] is None else f"{found['share']:.0%}"
            skills = f"{found['best']:.3f} | {found['skill']:.3f} | {share}"
            print(
                f"| {world} | {seed} | {skills} | {found['outcome']} | {found['linear']:.3f} | {found['loop']:+.2f} |"
            )
            print(found["sentence"], file=sys.stderr, flush=True)
            failed |= world in REQUIRED and found["share"] < REQUIRED[world]
            failed |= (found["outcome"] == "works") != (world in REQUIRED)
    return int(failed)


def study(world: str, seed: int, folder: Path, epochs: int, lr: float, weights: str) -> dict[str, object]:
    """Write a world, train on it and evaluate. Returns the best possible skill, the skill reached and the verdict."""
    clips_of = write_world(folder / "ds", world, np.random.default_rng(seed), TRACKS)
    data = ("--dataset_dir", folder / "ds", "--device", "cpu")
    training = ("--checkpoint_dir", folder / "ck", "--encodec_weights", weights, "--seed", seed)
    schedule = ("--epochs", epochs, "--patience", epochs, "--batch_size", 8, "--lr", lr)
    run_python("train_simple_ddp.py", *data, *training, *schedule)
    outputs = ("--checkpoint", folder / "ck/best_model.pt", "--output_dir", folder / "out")
    run_python("evaluate_continuation.py", *data, *outputs, "--num_examples", 0, "--max_sound_pairs", 1)
    results = json.loads((folder / "out/results.json").read_text())
    best, skill = best_skill(folder / "ds", world, clips_of, weights), results["rows"]["model"]["skill"]
    return {
        "best": best,
        "skill": skill,
        "share": skill / best if best > 0.01 else None,
        "linear": results["rows"]["clip_ridge"]["skill"],
        "loop": results["rows"]["loop"]["track_skill"],
        "outcome": results["verdict"]["outcome"],
        "sentence": results["verdict"]["sentence"],
    }


# ------------------------------------------------------------------ the worlds


def write_world(
    folder: Path, world: str, rng: np.random.Generator, num_tracks: dict[str, int]
) -> dict[str, list[tuple[int, int]]]:
    """Write a dataset of 1 s segments. Returns the two clips of each pair, by split."""
    clips = [draw_clip(rng) for _ in range(NUM_CLIPS)]
    ring = rng.permutation(NUM_CLIPS)
    after = {int(ring[k]): [int(ring[(k + 1) % NUM_CLIPS]), int(ring[(k + 3) % NUM_CLIPS])] for k in range(NUM_CLIPS)}
    rows, clips_of, files = [], {split: [] for split in num_tracks}, 0
    for split, tracks in num_tracks.items():
        (folder / split).mkdir(parents=True)
        for track in range(tracks):
            walk = [int(rng.integers(NUM_CLIPS))]
            while len(walk) < SEGMENTS:
                walk.append(int(rng.choice(after[walk[-1]][: max(1, WORLDS[world])])))
            sound = [clips[k] if WORLDS[world] else draw_clip(rng) for k in walk]
            pcm = [to_pcm16((s + 2e-4 * rng.normal(size=RATE)).astype(np.float32))[0] for s in sound]
            for k in range(SEGMENTS - 1):
                rows.append(PairRow(f"pair_{files:04d}", split, f"{split} track {track}", k))
                clips_of[split].append((walk[k], walk[k + 1]))
                for name, segment in zip(rows[-1].files, (pcm[k], pcm[k + 1]), strict=True):
                    write_wav(folder / name, segment, RATE)
                files += 1
    write_metadata(folder / "metadata.txt", {"segment_duration": "1"}, {}, [], rows)
    return clips_of


def draw_clip(rng: np.random.Generator) -> np.ndarray:
    """One second of tones that change every 0.2 s, with noise: float64 [24000], peaks below 1."""
    time, sound = np.arange(RATE) / RATE, 0.02 * rng.normal(size=RATE)
    for start in range(0, RATE, RATE // 5):
        part = slice(start, start + RATE // 5)
        for frequency in rng.uniform(80, 4000, 3):
            sound[part] += rng.uniform(0.05, 0.2) * np.sin(2 * np.pi * frequency * time[part])
    return sound


def best_skill(folder: Path, world: str, clips_of: dict[str, list[tuple[int, int]]], weights: str) -> float:
    """The pooled skill of E[next | current] on the validation split.

    The expectation is the mean over continuations of the same clip in the training split. The noise hardly affects it.
    """
    if not WORLDS[world]:
        return 0.0
    codec = load_frozen_encodec(weights)
    train, val = (WavPairsDataset(folder / split, codec) for split in ("train", "val"))
    prepare_cache([train, val])
    continuations: dict[int, dict[int, list[torch.Tensor]]] = {}  # current clip -> next clip -> embeddings
    for index, (here, following) in enumerate(clips_of["train"]):
        continuations.setdefault(here, {}).setdefault(following, []).append(train[index][1])
    # Both successors have the same weight, however often the coin chose each in training.
    expected = {
        here: torch.stack([torch.stack(found).mean(dim=0) for found in after.values()]).mean(dim=0)
        for here, after in continuations.items()
    }
    mean = torch.stack([x for i in range(len(train)) for x in train[i]]).mean(dim=(0, 2))[:, None]
    error = total = 0.0
    for index, (here, _) in enumerate(clips_of["val"]):
        target = val[index][1]
        error += float((target - expected[here]).square().sum())
        total += float((target - mean).square().sum())
    return 1 - error / total


if __name__ == "__main__":
    run_script(main)
