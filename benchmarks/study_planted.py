"""Music whose best possible prediction is known: does training find it, and is the verdict right?

    make study                             # three worlds with three seeds each: about half an hour on 2 cores
    python benchmarks/study_planted.py --seeds 1 --worlds coin

A track is a walk over eight clips of noisy tones, with noise about 60 dB below them. In the world `coin`, a coin
decides between two successors of a clip. In `chain` there is one successor. In `independent`, every segment is new. The
mean of a clip's successors is E[next | current] in any codec, so its skill is the best that any model can reach. The
datasets are written directly, because create_dataset_pairs_wav.py does not use the same audio twice.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from audio.frozen_encodec import load_frozen_encodec
from audio.segments import SAMPLE_RATE, to_pcm16
from benchmarks.measure import run_python, write_dataset
from common.arguments import number, parse_settings, setting
from common.errors import run_script
from dataset_wav_pairs import open_splits

NUM_CLIPS = 8
SEGMENTS = 7  # per track: six pairs
TRACKS = {"train": 96, "val": 12}
WORLDS = {"coin": 2, "chain": 1, "independent": 0}  # successors of a clip
REQUIRED = {"coin": 0.90, "chain": 0.95}  # share of the best possible skill
FIRST_SEED = 42
Clips = tuple[int, int]  # the numbers of a pair's two clips


@dataclass
class Settings:
    worlds: list[str] = setting(tuple(WORLDS), "worlds to study (default: all)", nargs="+", choices=tuple(WORLDS))  # noqa: RUF009
    seeds: int = setting(3, "number of seeds per world", type=number(int, at_least=1))
    epochs: int = setting(24, "epochs of each training run", type=number(int, at_least=1))


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    failed = False
    print("| world | seed | best possible skill | reached | share | verdict | linear map | loop |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for world, seed in itertools.product(settings.worlds, range(FIRST_SEED, FIRST_SEED + settings.seeds)):
        with tempfile.TemporaryDirectory() as folder:
            found = study(world, seed, Path(folder), settings.epochs, lr=1e-3, weights="untrained")
        share = "–" if found["share"] is None else f"{found['share']:.0%}"
        skills = f"{found['best']:.3f} | {found['skill']:.3f} | {share}"
        print(f"| {world} | {seed} | {skills} | {found['outcome']} | {found['linear']:.3f} | {found['loop']:+.2f} |")
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
    best = best_skill(folder / "ds", clips_of, weights) if WORLDS[world] else 0.0
    skill = results["rows"]["model"]["skill"]
    return {
        "best": best,
        "skill": skill,
        "share": skill / best if best > 0.01 else None,
        "linear": results["rows"]["clip_ridge"]["skill"],
        "loop": results["rows"]["loop"]["track_skill"],
        "outcome": results["verdict"]["outcome"],
        "sentence": results["verdict"]["sentence"],
    }


def write_world(
    folder: Path, world: str, rng: np.random.Generator, num_tracks: dict[str, int]
) -> dict[str, list[Clips]]:
    """Write a dataset of 1 s segments. Returns the clips of each pair, by split."""
    clips = [draw_clip(rng) for _ in range(NUM_CLIPS)]
    ring = rng.permutation(NUM_CLIPS).tolist()
    after = {ring[k]: [ring[(k + 1) % NUM_CLIPS], ring[(k + 3) % NUM_CLIPS]] for k in range(NUM_CLIPS)}
    tracks: dict[str, list[list[np.ndarray]]] = {split: [] for split in num_tracks}
    clips_of: dict[str, list[Clips]] = {split: [] for split in num_tracks}
    for split, count in num_tracks.items():
        for _ in range(count):
            walk = [int(rng.integers(NUM_CLIPS))]
            while len(walk) < SEGMENTS:
                walk.append(int(rng.choice(after[walk[-1]][: max(1, WORLDS[world])])))
            sound = [clips[k] if WORLDS[world] else draw_clip(rng) for k in walk]
            noisy = [(s + 2e-4 * rng.normal(size=SAMPLE_RATE)).astype(np.float32) for s in sound]
            tracks[split].append([to_pcm16(s)[0] for s in noisy])
            clips_of[split] += itertools.pairwise(walk)
    write_dataset(folder, tracks, seconds=1)
    return clips_of


def draw_clip(rng: np.random.Generator) -> np.ndarray:
    """One second of tones that change every 0.2 s, with noise: float64 [24000], peaks below 1."""
    time, sound = np.arange(SAMPLE_RATE) / SAMPLE_RATE, 0.02 * rng.normal(size=SAMPLE_RATE)
    for start in range(0, SAMPLE_RATE, SAMPLE_RATE // 5):
        part = slice(start, start + SAMPLE_RATE // 5)
        for frequency in rng.uniform(80, 4000, 3):
            sound[part] += rng.uniform(0.05, 0.2) * np.sin(2 * np.pi * frequency * time[part])
    return sound


def best_skill(dataset_dir: Path, clips_of: dict[str, list[Clips]], weights: str) -> float:
    """The pooled skill of E[next | current] on the validation split.

    The expectation is the mean over continuations of the same clip in the training split. The noise hardly affects it.
    """
    train, val, _ = open_splits(dataset_dir, load_frozen_encodec(weights))
    targets: dict[Clips, list[torch.Tensor]] = {}
    for clips, (_, target) in zip(clips_of["train"], train, strict=True):
        targets.setdefault(clips, []).append(target)
    # Both successors have the same weight, however often the coin chose each in training.
    averages: dict[int, list[torch.Tensor]] = {}
    for (here, _), found in targets.items():
        averages.setdefault(here, []).append(torch.stack(found).mean(dim=0))
    mean = torch.stack([x for pair in train for x in pair]).mean(dim=(0, 2))[:, None]
    error = total = 0.0
    for (here, _), (_, target) in zip(clips_of["val"], val, strict=True):
        expected = torch.stack(averages[here]).mean(dim=0)
        error += float((target - expected).square().sum())
        total += float((target - mean).square().sum())
    return 1 - error / total


if __name__ == "__main__":
    run_script(main)
