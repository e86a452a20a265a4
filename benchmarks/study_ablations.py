"""What two choices of the model change at equal steps: standardising inside it, and no dropout inside attention.

    python benchmarks/study_ablations.py --dataset_dir dataset_pairs_wav --encodec_weights untrained

Trains each variant from three seeds with the same data order and prints its validation MSE, relative to that of the
training mean, and the time of a step. To be quick it trains on a part of each segment: frames s to s + 240
of the input against the same frames of the continuation, the starts s on a grid; validation takes every part.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
from audio.frozen_encodec import load_frozen_encodec
from common.arguments import file_path, number
from common.errors import run_script
from dataset_wav_pairs import PairEmbeddings, WavPairsDataset, prepare_cache
from model_simple_transformer import EncoderLayer, SimpleTransformer

VARIANTS = ("as it is", "not standardised", "dropout inside attention")


def attend_with_dropout(layer: EncoderLayer, x: torch.Tensor) -> torch.Tensor:
    """`EncoderLayer._attend` with dropout on the attention probabilities, [B, T, dim] -> [B, T, dim]."""
    batch, length, dim = x.shape
    heads = layer.qkv(x).view(batch, length, 3, layer.num_heads, dim // layer.num_heads)
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query, key, value, dropout_p=layer.dropout if layer.training else 0.0)
    return layer.attention_out(attended.transpose(1, 2).reshape(batch, length, dim))


def parts(embeddings: PairEmbeddings, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of every part, [pairs * parts, 128, frames] each."""
    inputs, targets = embeddings.batch(list(range(len(embeddings.dataset))))
    return tuple(torch.cat(whole.split(frames, dim=2)) for whole in (inputs, targets))


def train(variant: str, seed: int, data: dict, steps: int, every: int, args: argparse.Namespace) -> tuple[list, float]:
    """(validation MSE at each `every` steps, seconds a step)."""
    torch.manual_seed(seed)
    model = SimpleTransformer()
    inputs, targets = data["train"]
    both = torch.cat([inputs, targets])
    if variant != "not standardised":
        model.set_statistics(both.mean(dim=(0, 2)), both.std(dim=(0, 2)))
    if variant == "dropout inside attention":
        for layer in model.layers:
            layer._attend = attend_with_dropout.__get__(layer)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.01)
    order = torch.Generator().manual_seed(seed)
    found, seconds = [], 0.0
    for step in range(1, steps + 1):
        chosen = torch.randperm(len(inputs), generator=order)[: args.batch_size]
        started = time.process_time()
        model.train()
        optimizer.zero_grad()
        F.mse_loss(model(inputs[chosen]), targets[chosen]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds += time.process_time() - started
        if step % every == 0:
            model.eval()
            with torch.no_grad():
                pieces = zip(*(whole.split(8) for whole in data["val"]), strict=True)
                error = sum(float((model(x) - y).double().square().sum()) for x, y in pieces)
            found.append(error / data["val"][1].numel())
    return found, seconds / steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=file_path, default="dataset_pairs_wav", help="(default: %(default)s)")
    parser.add_argument("--encodec_weights", type=file_path, default="pretrained", help="(default: %(default)s)")
    parser.add_argument("--frames", type=number(int, at_least=1), default=240, help="of a part (default: %(default)s)")
    parser.add_argument("--steps", type=number(int, at_least=1), default=60, help="(default: %(default)s)")
    parser.add_argument("--batch_size", type=number(int, at_least=1), default=4, help="parts (default: %(default)s)")
    parser.add_argument("--seeds", type=number(int, at_least=1), default=3, help="how many (default: %(default)s)")
    parser.add_argument("--lr", type=number(float, above=0), default=1e-4, help="(default: %(default)s)")
    args = parser.parse_args()
    codec = load_frozen_encodec(args.encodec_weights)
    splits = {name: WavPairsDataset(Path(args.dataset_dir, name), codec) for name in ("train", "val")}
    prepare_cache(list(splits.values()))
    data = {name: parts(PairEmbeddings(split, torch.device("cpu")), args.frames) for name, split in splits.items()}
    mean = torch.cat(data["train"]).mean(dim=(0, 2))[:, None]
    baseline = float((data["val"][1] - mean).double().square().mean())
    every = max(1, args.steps // 4)
    shape = f"{args.batch_size} parts of {args.frames} frames a step, lr {args.lr:g}"
    print(f"codec {codec.fingerprint}; {shape}; MSE of the training mean {baseline:.5g}\n")
    steps = range(every, args.steps + 1, every)
    print("| variant | " + " | ".join(f"step {s}" for s in steps) + " | CPU seconds a step |")
    print("|---|" + "---|" * (len(steps) + 1))
    for variant in VARIANTS:
        runs = [train(variant, seed, data, args.steps, every, args) for seed in range(args.seeds)]
        cells = []
        for at in range(len(steps)):
            values = [found[at] / baseline for found, _ in runs]
            cells.append(f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
        print(f"| {variant} | {' | '.join(cells)} | {statistics.mean(s for _, s in runs):.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    run_script(main)
