"""Does the concept work? A trained checkpoint against what it must beat, in numbers, pictures and sound.

    python evaluate_continuation.py                               # best_model.pt -> results_simple/report.html
    python evaluate_continuation.py --checkpoint checkpoints_simple/checkpoint_epoch_10.pt --output_dir results_epoch_10
    python evaluate_continuation.py --horizon_only --encodec_weights demo      # test a codec: no training needed

Compares the model on the validation split with repeating, averaging, holding and looping the input, with linear maps
of channels, frames and whole clips, with the training mean and with the codec alone. A stated rule decides whether it
works. Measures how far ahead the embeddings are predictable at all. Writes report.html (open it in a
browser), results.json, the figures and the WAVs. Can run beside a training.
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
    horizon_only: bool = setting(False, "only measure how far ahead the codec's embeddings are predictable")
    seed: int = seed_setting("all choices")
    cache_dir: str | None = cache_setting()
    device: str = device_setting()
    encodec_weights: str | None = checkpoint_weights_setting()


if __name__ == "__main__":
    answer_early(Settings, __doc__)

import json
import re
import time

from audio.codec import Codec
from audio.frozen_encodec import load_frozen_encodec
from audio.log_mel import LogMel
from audio.weights import PRETRAINED
from common.devices import pick_device
from common.errors import UserError, printable, run_script
from common.files import atomic_write, check_output_folder, lock_folder
from common.progress import Progress
from dataset.pairs import METADATA_NAME, PairRow, read_metadata
from dataset_wav_pairs import WavPairsDataset, prepare_cache
from evaluation.baselines import fit
from evaluation.comparison import Comparison, Model, spread_over_tracks
from evaluation.diagnosis import diagnose, limit
from evaluation.examples import write_example
from evaluation.figures import draw_diagnosis, draw_per_second
from evaluation.horizon import Split, draw_horizon, horizon_table, measure_horizon
from evaluation.measures import TrackErrors, effective_tracks
from evaluation.report import write_report
from evaluation.results import (
    gather_evidence,
    notes,
    seconds,
    table_rows,
    to_json_types,
    track_table,
    training_signs,
)
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
    settings = parse_settings(Settings, __doc__)
    check_output_folder("--output_dir", settings.output_dir)
    check_output_folder("--cache_dir", settings.cache_dir, is_written=False)
    check_is_ours(Path(settings.output_dir))
    (only_horizon if settings.horizon_only else evaluate_checkpoint)(settings)
    return 0


def only_horizon(settings: Settings, codec: Codec | None = None) -> None:
    """Measure the horizon on dataset and codec alone: a table, horizon.json and horizon.png."""
    listed = read_metadata(Path(settings.dataset_dir, METADATA_NAME)).pairs
    codec = codec or load_frozen_encodec(settings.encodec_weights or PRETRAINED, pick_device(settings.device))
    splits = open_splits(settings, codec, listed)
    output_dir, progress = Path(settings.output_dir), Progress()
    output_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(output_dir, "an evaluation"):
        horizon = measure_horizon(splits, log_mel_splits(settings, codec, listed), codec.frame_rate, progress)
        progress.close()
        write_json(output_dir / "horizon.json", {"codec": codec.fingerprint, "horizon": horizon})
        if horizon["seconds"]:
            print(f"codec {codec.fingerprint}, {settings.dataset_dir}", horizon_table(horizon), sep="\n")
            draw_horizon(output_dir / "horizon.png", horizon)
    print(horizon["sentence"])


def evaluate_checkpoint(settings: Settings, codec: Codec | None = None) -> None:
    """Compare the checkpoint with its baselines and write the report. codec: instead of the checkpoint's."""
    started, device, output_dir = time.monotonic(), pick_device(settings.device), Path(settings.output_dir)
    listed = read_metadata(Path(settings.dataset_dir, METADATA_NAME)).pairs
    checkpoint = load_checkpoint(settings.checkpoint)  # read once: a running training may replace the file
    model = SimpleTransformer.from_checkpoint(checkpoint, device)
    codec = codec or load_codec(checkpoint, settings.checkpoint, settings.encodec_weights, device)
    if codec.banner:
        print(codec.banner, file=sys.stderr)
    train, val = open_splits(settings, codec, listed)
    if val.pairs.num_samples != checkpoint["num_samples"]:
        raise UserError(
            f"{settings.checkpoint}: trained on segments of {checkpoint['num_samples']} samples, those in "
            f"{settings.dataset_dir} have {val.pairs.num_samples}; name the --dataset_dir it was trained on"
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(output_dir, "an evaluation"):
        prepare_cache([train.pairs, val.pairs])
        progress = Progress()
        horizon = measure_horizon((train, val), log_mel_splits(settings, codec, listed), codec.frame_rate, progress)
        fitted = fit(train.pairs, train.tracks, model.mean, model.std, progress)
        trained = Model(lambda x: model(x.to(device)), lambda x: model.channel_regression(x.to(device)))
        comparison = Comparison(trained, val.pairs, val.tracks, fitted, settings.seed)
        results = evaluate(comparison, train, listed, horizon, settings, checkpoint, progress)
        progress.close()
        results["seconds"] = round(time.monotonic() - started, 1)
        for stale in output_dir.iterdir():
            if OUR_FILES.fullmatch(stale.name) and stale.name not in results["files"]:
                stale.unlink()
        results = to_json_types(results)
        write_json(output_dir / "results.json", results)
        write_report(output_dir / "report.html", results)
    print(*(results["verdict"][part] for part in ("sentence", "transformer", "limit")), sep="\n")
    if horizon["sentence"] not in results["verdict"]["limit"]:
        print(horizon["sentence"])
    print(f"{output_dir / 'report.html'}: open it in a browser", flush=True)


def open_splits(settings: Settings, codec: Codec, listed: list[PairRow], use_cache: bool = True) -> tuple[Split, Split]:
    """The training and the validation split, and the track of each of their pairs."""
    splits = []
    for name in ("train", "val"):
        dataset = WavPairsDataset(Path(settings.dataset_dir, name), codec, settings.cache_dir, use_cache)
        splits.append(Split(dataset, [row.source for row in rows_of(dataset, listed, settings.dataset_dir)]))
    return splits[0], splits[1]


def log_mel_splits(settings: Settings, codec: Codec, listed: list[PairRow]) -> tuple[Split, Split]:
    """The same splits as log-mel spectrograms, computed as they are needed."""
    return open_splits(settings, LogMel(codec), listed, use_cache=False)


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
    train: Split,
    listed: list[PairRow],
    horizon: dict[str, object],
    settings: Settings,
    checkpoint: dict,
    progress: Progress,
) -> dict[str, object]:
    """The content of results.json; writes the examples and the figures."""
    folder, val, codec, tracks = Path(settings.output_dir), comparison.dataset, comparison.codec, comparison.tracks
    rows = rows_of(val, listed, settings.dataset_dir)
    sound_pairs = spread_over_tracks(tracks, settings.max_sound_pairs, settings.seed, in_runs=True)
    errors, sound = comparison.measure(sound_pairs, progress)
    by_tracks = TrackErrors(errors, tracks)
    elements = codec.embedding_dim * val.num_frames
    per_second = seconds(errors, by_tracks, val.num_frames, codec.embedding_dim, codec.frame_rate)
    diagnosis = diagnose(by_tracks)
    known = {train.pairs.keys[index][1] for index in range(len(train.pairs))}
    copies = [index for index in range(len(val)) if val.keys[index][1] in known]  # true continuations trained on
    shared_tracks = set(train.tracks) & set(tracks) | {tracks[index] for index in copies}
    evidence = gather_evidence(by_tracks, len(shared_tracks))
    table = table_rows(errors, by_tracks, sound, tracks, elements)
    epochs = [line for line in read_metrics(Path(settings.checkpoint).parent / METRICS) if "epoch" in line]

    examples = []
    for index in spread_over_tracks(tracks, settings.num_examples, settings.seed):
        skill = 1 - errors["model"]["seconds"][index].sum() / max(errors["training_mean"]["seconds"][index].sum(), 1e-9)
        example = write_example(comparison, index, decode_joined, f"example_{len(examples) + 1:02d}", folder)
        row = rows[index]
        about = {"pair": row.name, "source": row.source, "start_s": row.start_s, "skill": float(skill)}
        examples.append(about | example)
        progress(len(examples), settings.num_examples, "examples written")
    draw_per_second(folder / "per_second.png", per_second)
    draw_diagnosis(folder / "diagnosis.png", diagnosis)
    files = ["per_second.png", "diagnosis.png"]
    if horizon["seconds"]:
        draw_horizon(folder / "horizon.png", horizon)
        files.append("horizon.png")
    if epochs:
        draw_curves(folder / CURVES, Path(settings.checkpoint).parent / METRICS)
        files.append(CURVES)
    files += [clip[kind] for example in examples for clip in example["files"].values() for kind in ("wav", "png")]
    results = {
        "format": FORMAT,
        "verdict": verdict(evidence)
        | {"limit": limit(evidence, diagnosis, by_tracks, *training_signs(checkpoint, epochs), horizon)},
        "checkpoint": {
            "path": printable(settings.checkpoint),
            "epoch": checkpoint["epoch"],
            "codec": codec.fingerprint,
            "codec_is_pretrained": codec.is_pretrained,
        },
        "rows": table,
        "per_second": per_second,
        "diagnosis": diagnosis,
        "horizon": horizon,
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
    return results | {"notes": notes(results, checkpoint, len(copies))}


def write_json(path: Path, content: dict) -> None:
    with atomic_write(path) as temporary:
        text = json.dumps(to_json_types(content), indent=1, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text, encoding="utf-8")


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
