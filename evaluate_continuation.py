"""Does the concept work? A trained checkpoint against what it must beat, in numbers, pictures and sound.

    python evaluate_continuation.py                               # best_model.pt -> results_simple/report.html
    python evaluate_continuation.py --checkpoint checkpoints_simple/checkpoint_epoch_10.pt --output_dir results_epoch_10
    python evaluate_continuation.py --encodec_weights untrained   # for a model trained with it: the sound means nothing

Measures the model, and its rivals, on the validation split: repeating the input, holding the input's average,
predicting the training mean, another track's true continuation, and the codec alone. Writes report.html (open it in
a browser), results.json, the figures and the WAVs. Works beside a running training.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audio.frozen_encodec import load_frozen_encodec, untrained_banner
from audio.segments import to_pcm16, write_wav
from common import arguments
from common.arguments import file_path
from common.devices import pick_device
from common.errors import UserError, printable, run_script
from common.files import atomic_write, check_output_folder, lock_folder
from dataset.pairs import METADATA_NAME, PairRow, find_pairs, read_metadata
from dataset_wav_pairs import WavPairsDataset, prepare_cache
from evaluation.figures import draw_curves, draw_per_second, mel_decibels, write_spectrogram
from evaluation.measures import verdict
from evaluation.report import write_report
from evaluation.rows import Evaluation, SplitEmbeddings, by_track, read_wav, spread_over_tracks, summarise
from generate_continuation import check_codec, decode_joined
from model_simple_transformer import SimpleTransformer
from training.checkpoint import load_checkpoint
from training.log import METRICS, read_metrics

FORMAT = "jingle_d results 1"
OWN_FILES = re.compile(r"example_\d+_(context|truth|model|ceiling|joined)\.(wav|png)|(curves|per_second)_\w+\.png")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=file_path, default="checkpoints_simple/best_model.pt", help="(default: %(default)s)")
    add("--dataset_dir", type=file_path, default="dataset_pairs_wav", help="its val/ is used (default: %(default)s)")
    add("--output_dir", type=file_path, default="results_simple", help="(default: %(default)s)")
    add(
        "--num_examples",
        type=arguments.number(int, at_least=0, below=2**63),
        default=8,
        help="pairs to look at and listen to (default: %(default)s)",
    )
    add(
        "--max_sound_pairs",
        type=arguments.number(int, at_least=1),
        default=100,
        help="pairs to decode for FAD, log-mel and chroma, spread over the tracks (default: %(default)s)",
    )
    add(
        "--batch_size",
        type=arguments.number(int, at_least=1),
        default=8,
        help="changes the speed, not the results (default: %(default)s)",
    )
    add(
        "--seed",
        type=arguments.number(int, at_least=0, below=2**63),
        default=42,
        help="of bootstrap and choices (default: %(default)s)",
    )
    add("--cache_dir", type=file_path, help="where embeddings are kept (default: .embedding_cache in dataset_dir)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="(default: %(default)s)")
    add("--encodec_weights", type=file_path, default="pretrained", help="pretrained, untrained, or a file or folder")
    return parser.parse_args()


def read_pairs(dataset_dir: Path) -> tuple[list[PairRow], set[str]]:
    """What metadata.txt says of the pairs in val/, in their order, and the tracks that train/ has as well."""
    listed = read_metadata(dataset_dir / METADATA_NAME).pairs
    rows = {row.name: row for row in listed if row.split == "val"}
    names = find_pairs(dataset_dir / "val").names
    for name in names:
        if name not in rows:
            raise UserError(
                f"{dataset_dir / METADATA_NAME}: does not list val/{name}; create the dataset again with --overwrite"
            )
    pairs = [rows[name] for name in names]
    return pairs, {row.source for row in listed if row.split == "train"} & {row.source for row in pairs}


def write_examples(
    evaluation: Evaluation, indices: list[int], pairs: list[PairRow], errors: dict[str, np.ndarray], folder: Path
) -> list[dict[str, object]]:
    """WAVs and spectrograms of the pairs `indices`; what results.json says of them.

    context and truth are the dataset's own; model and ceiling are the second halves of context and embedding decoded
    in one piece, as generate_continuation.py does it; joined is that piece. All spectrograms of a pair share a scale.
    """
    dataset, codec = evaluation.dataset, evaluation.codec
    examples = []
    for number, index in enumerate(indices, 1):
        inputs, targets = (batch[0] for batch in evaluation.embeddings.batch([index]))
        predicted = evaluation.continuation(inputs, index)
        clips = {"context": read_wav(dataset.pairs[index][0]), "truth": read_wav(dataset.pairs[index][1])}
        for name, continuation in (("model", predicted), ("ceiling", targets)):
            joined, seam = decode_joined(codec, inputs[None], continuation[None])
            clips[name] = joined.flatten().numpy()[seam:]
            if name == "model":
                clips["joined"] = joined.flatten().numpy()
        decibels = {name: mel_decibels(clip.clip(-1, 1), codec.sample_rate) for name, clip in clips.items()}
        top_db = max(decibels["context"].max(), decibels["truth"].max())
        files = {}
        for name, clip in clips.items():
            stem = f"example_{number:02d}_{name}"
            write_wav(folder / f"{stem}.wav", to_pcm16(clip)[0], codec.sample_rate)
            write_spectrogram(folder / f"{stem}.png", decibels[name], top_db)
            files[name] = {"wav": f"{stem}.wav", "png": f"{stem}.png", "seconds": len(clip) / codec.sample_rate}
        row = pairs[index]
        skill = 1 - errors["model"][index].sum() / max(errors["training_mean"][index].sum(), 1e-300)
        examples.append(
            {"pair": row.name, "source": row.source, "start_s": row.start_s, "skill": float(skill), "files": files}
        )
        evaluation.told(number, len(indices), "examples written")
    return examples


def track_table(pairs: list[PairRow], errors: dict[str, np.ndarray], elements: int) -> list[dict[str, object]]:
    """Pairs, MSE and skill of each validation track."""
    table = []
    for source, group in by_track([row.source for row in pairs]).items():
        model, mean = (errors[name][group].sum() for name in ("model", "training_mean"))
        skill = 1 - model / max(mean, 1e-300)
        table.append({"source": source, "pairs": len(group), "mse": model / (len(group) * elements), "skill": skill})
    return table


class Progress:
    """A bar on a terminal, a line every 30 seconds in a log."""

    def __init__(self):
        self.bar, self.what, self.said = None, "", time.monotonic()

    def __call__(self, done: int, total: int, what: str) -> None:
        if what != self.what:
            self.close()
            self.what = what
            self.bar = tqdm(total=total, desc=what, leave=False, disable=not sys.stderr.isatty())
        if not self.bar.disable:
            self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.said > 30 or done == total:
            self.said = time.monotonic()
            print(f"{done} of {total} {what}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def plain(value: object) -> object:
    """`value` for JSON: arrays as lists, tuples as lists, numbers that are not finite as null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def check_is_ours(folder: Path) -> None:
    """UserError if there are results in `folder` that this script did not write: they are not to be replaced."""
    path = folder / "results.json"
    try:
        ours = json.loads(path.read_bytes())["format"] == FORMAT
    except FileNotFoundError:
        ours = not (path := folder / "report.html").exists()
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{path}: is not from this script and would be overwritten; choose another --output_dir")


def main() -> int:
    args, started = parse_args(), time.monotonic()
    device, output_dir, dataset_dir = pick_device(args.device), Path(args.output_dir), Path(args.dataset_dir)
    check_output_folder("--output_dir", output_dir)
    check_output_folder("--cache_dir", args.cache_dir, is_written=False)
    pairs, shared_tracks = read_pairs(dataset_dir)
    checkpoint = load_checkpoint(args.checkpoint)  # read once: a running training may replace the file
    model = SimpleTransformer.from_checkpoint(checkpoint, device)
    check_is_ours(output_dir)
    codec = load_frozen_encodec(args.encodec_weights, device)
    check_codec(checkpoint, codec, args.checkpoint)
    print(untrained_banner(codec), end="\n" if untrained_banner(codec) else "", file=sys.stderr)
    dataset = WavPairsDataset(dataset_dir / "val", codec, args.cache_dir)
    if dataset.num_samples != checkpoint["num_samples"]:
        raise UserError(
            f"{args.checkpoint}: trained on segments of {checkpoint['num_samples']} samples, those in "
            f"{dataset_dir} have {dataset.num_samples}; name the --dataset_dir it was trained on"
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(output_dir, "an evaluation"):
        prepare_cache([dataset])
        progress = Progress()
        tracks = [row.source for row in pairs]
        # Everything but the model is where the codec is: Apple's GPU has no float64.
        embeddings = SplitEmbeddings(dataset, codec.device)
        evaluation = Evaluation(
            lambda x: model(x.to(device)).to(x.device),
            model.mean.to(codec.device),
            embeddings,
            tracks,
            args.seed,
            args.batch_size,
            progress,
        )
        results = evaluate(evaluation, pairs, args, checkpoint)
        progress.close()
        results["notes"] += notes(results, checkpoint, shared_tracks)
        for stale in output_dir.iterdir():
            if OWN_FILES.fullmatch(stale.name) and stale.name not in results["files"]:
                stale.unlink()
        results["seconds"] = round(time.monotonic() - started, 1)
        results = plain(results)
        with atomic_write(output_dir / "results.json") as beside:
            beside.write_text(json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8")
        write_report(output_dir / "report.html", results)
    print(f"{results['verdict']['sentence']}\n{output_dir / 'report.html'}: open it in a browser", flush=True)
    return 0


def evaluate(
    evaluation: Evaluation, pairs: list[PairRow], args: argparse.Namespace, checkpoint: dict
) -> dict[str, object]:
    """results.json, its notes only on metrics.jsonl; writes the examples and the figures."""
    folder, dataset, codec = Path(args.output_dir), evaluation.dataset, evaluation.codec
    measured = evaluation.measure_embeddings()
    sound_pairs = spread_over_tracks(evaluation.tracks, args.max_sound_pairs, args.seed, in_runs=True)
    sound = evaluation.measure_sound(sound_pairs)
    shape = (dataset.num_frames, codec.embedding_dim)
    rows, per_second = summarise(measured, sound, evaluation.tracks, *shape, codec.frame_rate, args.seed)
    errors = {name: parts[0] for name, parts in measured.items()}
    examples = write_examples(
        evaluation, spread_over_tracks(evaluation.tracks, args.num_examples, args.seed), pairs, errors, folder
    )
    logged = read_metrics(Path(args.checkpoint).parent / METRICS)
    epochs = [
        {name: line[name] for name in ("epoch", "train_mse", "val_mse")} for line in logged if "baselines" not in line
    ]
    draw_per_second(folder, per_second)
    files = ["per_second_light.png", "per_second_dark.png"]
    if epochs:
        draw_curves(folder, epochs, checkpoint["baselines"], checkpoint["epoch"])
        files += ["curves_light.png", "curves_dark.png"]
    files += [clip[kind] for example in examples for clip in example["files"].values() for kind in ("wav", "png")]
    model = rows["model"]
    rivals = {"repeat_input": "repeating the input", "input_mean": "holding the input's average"}
    beaten_by = tuple(words for name, words in rivals.items() if rows[name]["mse"] < model["mse"])
    table = track_table(pairs, errors, math.prod(shape))
    return {
        "format": FORMAT,
        "verdict": verdict(model["skill"], model["skill_interval"], model["deviation_ratio"], len(table), beaten_by),
        "checkpoint": {
            "path": printable(args.checkpoint),
            "epoch": checkpoint["epoch"],
            "codec": codec.fingerprint,
            "codec_is_pretrained": codec.is_pretrained,
        },
        "rows": rows,
        "per_second": per_second,
        "tracks": table,
        "dataset": {
            "path": printable(args.dataset_dir),
            "pairs": len(pairs),
            "tracks": len(table),
            "segment_s": dataset.num_samples / codec.sample_rate,
            "sample_rate": codec.sample_rate,
            "sound_pairs": len(sound_pairs),
        },
        "settings": {"seed": args.seed, "num_examples": args.num_examples, "max_sound_pairs": args.max_sound_pairs},
        "examples": examples,
        "training": {"baselines": checkpoint["baselines"], "epochs": epochs},
        "notes": [],
        "files": files,
    }


def notes(results: dict, checkpoint: dict, shared_tracks: set[str]) -> list[str]:
    """What the reader of these results must know and the numbers do not say."""
    found = []
    if shared_tracks:
        found.append(
            f"{len(shared_tracks)} of {results['dataset']['tracks']} validation tracks are in the training split too "
            "(music from one track, split in time): this says how the model does on tracks it knows."
        )
    expected, here = checkpoint["baselines"]["training_mean"], results["rows"]["training_mean"]["mse"]
    if abs(here / max(expected, 1e-30) - 1) > 1e-3:
        found.append(
            f"This is not the validation split of the training (the training mean's MSE is {here:.4g} here and was "
            f"{expected:.4g} there): make sure that the model was not trained on these tracks."
        )
    return found


if __name__ == "__main__":
    run_script(main)
