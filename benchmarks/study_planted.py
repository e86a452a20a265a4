"""Music whose best possible prediction is known: does the training find it, and does the verdict say what is so?

    python benchmarks/study_planted.py     # three worlds, three seeds each: about half an hour on 2 cores
    python benchmarks/study_planted.py --seeds 1 --worlds coin

Tracks are walks over eight clips of noisy tones, with noise 60 dB below on top: in the world `coin` a coin decides
between two successors, in `chain` there is one, in `independent` every segment is new. The mean of a clip's successors
is E[next | current] in any codec, so its skill is the best that any model can reach. The datasets are written directly,
because create_dataset_pairs_wav.py uses the same audio once only; the rest are the project's own commands.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from audio.frozen_encodec import load_frozen_encodec
from audio.segments import to_pcm16, write_wav
from common.arguments import file_path, number, parse_settings, seed_setting, setting
from common.errors import run_script
from dataset.pairs import PairRow, write_metadata
from dataset_wav_pairs import WavPairsDataset, prepare_cache

ROOT = Path(__file__).parent.parent
RATE = 24000
NUM_CLIPS = 8
SEGMENTS = 7  # of a track: six pairs
TRACKS = {"train": 96, "val": 12}
WORLDS = {"coin": 2, "chain": 1, "independent": 0}  # successors of a clip
REQUIRED = {"coin": 0.90, "chain": 0.95}  # of the best possible skill


@dataclass
class Settings:
    worlds: list[str] = setting(tuple(WORLDS), "which", nargs="+", choices=tuple(WORLDS))  # noqa: RUF009
    seeds: int = setting(3, "how many datasets and trainings of each", type=number(int, at_least=1))
    epochs: int = setting(24, "of each training", type=number(int, at_least=1))
    lr: float = setting(1e-3, "learning rate, ten times the default for 200 epochs", type=number(float, above=0))
    seed: int = seed_setting("the first world")
    encodec_weights: str = setting("untrained", "any will do: untrained, demo, pretrained, or a file", type=file_path)


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    failed = False
    print("| world | seed | best possible skill | reached | share | verdict | linear map | loop |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for world in settings.worlds:
        for seed in range(settings.seed, settings.seed + settings.seeds):
            with tempfile.TemporaryDirectory() as folder:
                found = study(world, seed, Path(folder), settings.epochs, settings.lr, settings.encodec_weights)
            share = found["share"]
            percent = "–" if share is None else f"{share:.0%}"
            failed |= world in REQUIRED and share < REQUIRED[world]
            failed |= (found["outcome"] == "works") != (world in REQUIRED)
            print(
                f"| {world} | {seed} | {found['best']:.3f} | {found['skill']:.3f} | {percent} | {found['outcome']} | "
                f"{found['linear']:.3f} | {found['loop']:+.2f} |",
                flush=True,
            )
            print(found["sentence"], file=sys.stderr, flush=True)
    return int(failed)


def study(world: str, seed: int, folder: Path, epochs: int, lr: float, weights: str) -> dict[str, object]:
    """Write a world, train on it and judge the model: the best possible skill, the reached one, the verdict."""
    clips_of = write_world(folder / "ds", world, np.random.default_rng(seed))
    data, device = ["--dataset_dir", folder / "ds"], ["--device", "cpu"]
    schedule = ["--epochs", epochs, "--patience", epochs, "--batch_size", 8, "--lr", lr, "--seed", seed]
    run(
        "train_simple_ddp.py",
        *data,
        "--checkpoint_dir",
        folder / "ck",
        "--encodec_weights",
        weights,
        *device,
        *schedule,
    )
    outputs = ["--checkpoint", folder / "ck/best_model.pt", "--output_dir", folder / "out", "--num_examples", 0]
    run("evaluate_continuation.py", *data, *outputs, "--max_sound_pairs", 1, *device)
    results = json.loads((folder / "out/results.json").read_text())
    rows = results["rows"]
    best = best_skill(folder / "ds", world, clips_of, weights)
    return {
        "best": best,
        "skill": rows["model"]["skill"],
        "share": rows["model"]["skill"] / best if best > 0.01 else None,
        "linear": rows["clip_ridge"]["skill"],
        "loop": rows["loop"]["track_skill"],
        "outcome": results["verdict"]["outcome"],
        "sentence": results["verdict"]["sentence"],
    }


def run(script: str, *args: object) -> None:
    """Run one of the project's commands; its output is shown if it fails."""
    done = subprocess.run([sys.executable, ROOT / script, *map(str, args)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} {args}\n{done.stdout}\n{done.stderr}")


# ------------------------------------------------------------------ the worlds


def write_world(
    folder: Path, world: str, rng: np.random.Generator, num_tracks: dict[str, int] = TRACKS
) -> dict[str, list[tuple[int, int]]]:
    """Write a dataset of 1 s segments; which clips each pair of a split is made of."""
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
    """A second of tones that change five times, over noise: float64 [24000], peaks below 1."""
    time, sound = np.arange(RATE) / RATE, 0.02 * rng.normal(size=RATE)
    for start in range(0, RATE, RATE // 5):
        part = slice(start, start + RATE // 5)
        for frequency in rng.uniform(80, 4000, 3):
            sound[part] += rng.uniform(0.05, 0.2) * np.sin(2 * np.pi * frequency * time[part])
    return sound


def best_skill(folder: Path, world: str, clips_of: dict[str, list[tuple[int, int]]], weights: str) -> float:
    """The pooled skill of E[next | current] on the validation split.

    The expectation is the mean over the training split's continuations of the same clip, which the noise, 60 dB down,
    does not move.
    """
    if not WORLDS[world]:
        return 0.0
    codec = load_frozen_encodec(weights)
    train, val = (WavPairsDataset(folder / split, codec) for split in ("train", "val"))
    prepare_cache([train, val])
    continuations: dict[int, dict[int, list[torch.Tensor]]] = {}  # current clip -> next clip -> its embeddings there
    for index, (here, following) in enumerate(clips_of["train"]):
        continuations.setdefault(here, {}).setdefault(following, []).append(train[index][1])
    # Each successor with the same weight, whatever the coin gave in training.
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
