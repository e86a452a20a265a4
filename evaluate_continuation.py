"""Does the concept work? A trained checkpoint against what it must beat, in numbers, pictures and sound.

    python evaluate_continuation.py                               # best_model.pt -> results_simple/report.html
    python evaluate_continuation.py --checkpoint checkpoints_simple/checkpoint_epoch_10.pt --output_dir results_epoch_10

Compares the model on the validation split with repeating, averaging, shrinking, holding and looping the input, with
linear maps of frames and of whole clips, with the training mean and with the codec alone, and says by a stated rule
whether it works. Writes report.html (open it in a browser), results.json, the figures and the WAVs. Can run beside a
training.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from common.arguments import (
    answer_early,
    cache_setting,
    checkpoint_setting,
    checkpoint_weights_setting,
    dataset_setting,
    device_setting,
    file_path,
    number,
    parse_settings,
    seed_setting,
    setting,
)


@dataclass(frozen=True)
class Settings:
    checkpoint: str = checkpoint_setting()
    dataset_dir: str = dataset_setting()
    output_dir: str = setting("results_simple", "where report.html and all else is written", type=file_path)
    num_examples: int = setting(8, "pairs to look at and listen to", type=number(int, at_least=0, below=2**31))
    max_sound_pairs: int = setting(
        60, "pairs to decode for log-mel and chroma, spread over the tracks", type=number(int, at_least=1)
    )
    seed: int = seed_setting("all choices")
    cache_dir: str | None = cache_setting()
    device: str = device_setting()
    encodec_weights: str | None = checkpoint_weights_setting()


if __name__ == "__main__":
    answer_early(Settings, __doc__)

import json
import re
import time

from audio.segments import to_pcm16, write_wav
from common.devices import pick_device
from common.errors import UserError, printable, run_script
from common.files import atomic_write, check_output_folder, lock_folder
from common.progress import Progress
from dataset.pairs import METADATA_NAME, PairRow, read_metadata
from dataset_wav_pairs import WavPairsDataset, prepare_cache
from evaluation.diagnosis import diagnose, limit
from evaluation.figures import draw_diagnosis, draw_per_second, mel_decibels, write_spectrogram
from evaluation.measures import TrackErrors, effective_tracks
from evaluation.report import write_report
from evaluation.results import gather_evidence, plain, seconds, table_rows, track_table
from evaluation.rivals import fit
from evaluation.rows import Comparison, Model, read_wav, spread_over_tracks
from evaluation.sound import SOUND_S
from evaluation.verdict import verdict
from generate_continuation import decode_joined
from model_simple_transformer import SimpleTransformer
from training.checkpoint import load_checkpoint, load_codec
from training.curves import CURVES, draw_curves
from training.log import METRICS, read_metrics

FORMAT = "jingle_d results 3"
OUR_FILES = re.compile(
    r"example_\d+_(context|truth|model|ceiling|joined)\.(wav|png)|(curves|per_second|diagnosis|horizon)(_light|_dark)?\.png"
)


def main() -> int:
    settings, started = parse_settings(Settings, __doc__), time.monotonic()
    device, output_dir, dataset_dir = pick_device(settings.device), Path(settings.output_dir), settings.dataset_dir
    check_output_folder("--output_dir", output_dir)
    check_output_folder("--cache_dir", settings.cache_dir, is_written=False)
    listed = read_metadata(Path(dataset_dir, METADATA_NAME)).pairs
    checkpoint = load_checkpoint(settings.checkpoint)  # read once: a running training may replace the file
    model = SimpleTransformer.from_checkpoint(checkpoint, device)
    check_is_ours(output_dir)
    codec = load_codec(checkpoint, settings.checkpoint, settings.encodec_weights, device)
    if codec.banner:
        print(codec.banner, file=sys.stderr)
    train, val = (WavPairsDataset(Path(dataset_dir, split), codec, settings.cache_dir) for split in ("train", "val"))
    if val.num_samples != checkpoint["num_samples"]:
        raise UserError(
            f"{settings.checkpoint}: trained on segments of {checkpoint['num_samples']} samples, those in "
            f"{dataset_dir} have {val.num_samples}; name the --dataset_dir it was trained on"
        )
    rows = {split: rows_of(dataset, listed, dataset_dir) for split, dataset in (("train", train), ("val", val))}
    output_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(output_dir, "an evaluation"):
        prepare_cache([train, val])
        progress = Progress()
        fitted = fit(train, [row.source for row in rows["train"]], model.mean, model.std, progress)
        trained = Model(lambda x: model(x.to(device)), lambda x: model.shrunk_copy(x.to(device)))
        comparison = Comparison(trained, val, [row.source for row in rows["val"]], fitted, settings.seed)
        known = {train.keys[index][1] for index in range(len(train))}
        copies = [index for index in range(len(val)) if val.keys[index][1] in known]
        results = evaluate(comparison, rows, copies, settings, checkpoint, progress)
        progress.close()
        results["notes"] = notes(results, checkpoint, len(copies))
        results["seconds"] = round(time.monotonic() - started, 1)
        for stale in output_dir.iterdir():
            if OUR_FILES.fullmatch(stale.name) and stale.name not in results["files"]:
                stale.unlink()
        results = plain(results)
        with atomic_write(output_dir / "results.json") as temporary:
            temporary.write_text(json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8")
        write_report(output_dir / "report.html", results)
    print(*(results["verdict"][part] for part in ("sentence", "transformer", "limit")), sep="\n")
    print(f"{output_dir / 'report.html'}: open it in a browser", flush=True)
    return 0


def rows_of(dataset: WavPairsDataset, listed: list[PairRow], dataset_dir: str) -> list[PairRow]:
    """What metadata.txt says of each pair of a split."""
    by_name = {row.name: row for row in listed if row.split == dataset.split_dir.name}
    names = [dataset.name(index) for index in range(len(dataset))]
    for name in names:
        if name not in by_name:
            raise UserError(
                f"{Path(dataset_dir, METADATA_NAME)}: does not list {dataset.split_dir.name}/{name}; create the "
                "dataset again with --overwrite"
            )
    return [by_name[name] for name in names]


def evaluate(
    comparison: Comparison,
    rows: dict[str, list[PairRow]],
    copies: list[int],
    settings: Settings,
    checkpoint: dict,
    progress: Progress,
) -> dict[str, object]:
    """results.json but for its notes; writes the examples and the figures.

    copies: the validation pairs whose true continuations are in the training split too.
    """
    folder, val, codec, tracks = Path(settings.output_dir), comparison.dataset, comparison.codec, comparison.tracks
    sound_pairs = spread_over_tracks(tracks, settings.max_sound_pairs, settings.seed, in_runs=True)
    errors, sound = comparison.measure(sound_pairs, progress)
    by_tracks = TrackErrors(errors, tracks)
    elements = codec.embedding_dim * val.num_frames
    per_second = seconds(errors, by_tracks, val.num_frames, codec.embedding_dim, codec.frame_rate)
    diagnosis = diagnose(by_tracks)
    shared_tracks = {row.source for row in rows["train"]} & set(tracks) | {tracks[index] for index in copies}
    evidence = gather_evidence(by_tracks, len(shared_tracks))
    table = table_rows(errors, by_tracks, sound, tracks, elements)
    epochs = [line for line in read_metrics(Path(settings.checkpoint).parent / METRICS) if "epoch" in line]

    examples = []
    for index in spread_over_tracks(tracks, settings.num_examples, settings.seed):
        skill = 1 - errors["model"]["seconds"][index].sum() / max(errors["training_mean"]["seconds"][index].sum(), 1e-9)
        examples.append(write_example(comparison, index, rows["val"][index], float(skill), len(examples) + 1, folder))
        progress(len(examples), settings.num_examples, "examples written")
    draw_per_second(folder / "per_second.png", per_second)
    draw_diagnosis(folder / "diagnosis.png", diagnosis)
    files = ["per_second.png", "diagnosis.png"]
    if epochs:
        draw_curves(folder / CURVES, Path(settings.checkpoint).parent / METRICS)
        files.append(CURVES)
    files += [clip[kind] for example in examples for clip in example["files"].values() for kind in ("wav", "png")]
    return {
        "format": FORMAT,
        "verdict": verdict(evidence)
        | {"limit": limit(evidence, diagnosis, by_tracks, *training_signs(checkpoint, epochs))},
        "checkpoint": {
            "path": printable(settings.checkpoint),
            "epoch": checkpoint["epoch"],
            "codec": codec.fingerprint,
            "codec_is_pretrained": codec.is_pretrained,
        },
        "rows": table,
        "per_second": per_second,
        "diagnosis": diagnosis,
        "reference": {
            "effective_tracks": effective_tracks(by_tracks.scale),
            "ridge_penalty": comparison.fitted.penalty,
            "clip_ridge_penalty": comparison.fitted.clip_ridge.penalty,
        },
        "tracks": track_table(by_tracks, tracks, elements),
        "dataset": {
            "path": printable(settings.dataset_dir),
            "pairs": len(val),
            "tracks": evidence.tracks,
            "shared_tracks": len(shared_tracks),
            "segment_s": val.num_samples / codec.sample_rate,
            "sample_rate": codec.sample_rate,
            "sound_pairs": len(sound_pairs),
            "sound_s": min(SOUND_S, val.num_samples / codec.sample_rate),
        },
        "settings": {name: asdict(settings)[name] for name in ("seed", "num_examples", "max_sound_pairs")},
        "examples": examples,
        "training": {
            "baselines": checkpoint["baselines"],
            "epochs": [{name: line[name] for name in ("epoch", "train_mse", "val_mse")} for line in epochs],
        },
        "files": files,
    }


def training_signs(checkpoint: dict, epochs: list[dict]) -> tuple[float | None, bool]:
    """The pooled skill on the training pairs in the evaluated epoch, and whether the training still improved there.

    None and False if that epoch is not logged.
    """
    line = next((line for line in epochs if line["epoch"] == checkpoint["epoch"]), None)
    if line is None:
        return None, False
    # The error of the training mean on the training pairs is the variance, mean of channels.
    variance = float(checkpoint["model"]["std"].double().square().mean())
    still_improved = line is epochs[-1] and line["val_mse"] < min([e["val_mse"] for e in epochs[:-1]], default=0)
    return 1 - line["train_mse"] / max(variance, 1e-30), still_improved


def write_example(
    comparison: Comparison, index: int, row: PairRow, skill: float, number: int, folder: Path
) -> dict[str, object]:
    """WAVs and spectrograms of a pair; what results.json says of them.

    context and truth are the dataset's own; model and ceiling are the second halves of context and embedding decoded
    in one piece, as generate_continuation.py does it; joined is that piece. All spectrograms of a pair share a scale.
    """
    codec, (source, target) = comparison.codec, comparison.dataset[index]
    clips = {
        name: read_wav(path) for name, path in zip(("context", "truth"), comparison.dataset.pairs[index], strict=True)
    }
    for name, continuation in (("model", comparison.predict(source, index)), ("ceiling", target)):
        joined, seam = decode_joined(codec, source[None], continuation[None])
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
    return {"pair": row.name, "source": row.source, "start_s": row.start_s, "skill": skill, "files": files}


def notes(results: dict, checkpoint: dict, copies: int) -> list[str]:
    """What the reader of these results must know and the numbers do not say."""
    found = []
    if shared := results["dataset"]["shared_tracks"]:
        found.append(
            f"{shared} of {results['dataset']['tracks']} validation tracks are in the training split too: this says "
            "how the model does on tracks it knows."
        )
    if copies:
        found.append(
            f"{copies} of {results['dataset']['pairs']} true continuations are in the training split too, sample for "
            "sample."
        )
    expected, here = checkpoint["baselines"]["training_mean"], results["rows"]["training_mean"]["mse"]
    if abs(here / max(expected, 1e-30) - 1) > 1e-3:
        found.append(
            f"This is not the validation split of the training (the training mean's MSE is {here:.4g} here and was "
            f"{expected:.4g} there): make sure that the model was not trained on these tracks."
        )
    return found


def check_is_ours(folder: Path) -> None:
    """UserError if there are results in `folder` that this script did not write: they are not replaced."""
    path = folder / "results.json"
    try:
        ours = json.loads(path.read_bytes())["format"].startswith("jingle_d results ")
    except FileNotFoundError:
        ours = not (path := folder / "report.html").exists()
    except (ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise UserError(f"{path}: is not from this script and would be overwritten; choose another --output_dir")


if __name__ == "__main__":
    run_script(main)
