"""Does the concept work? Compare a trained checkpoint with simple baselines, in numbers, pictures and sound.

    python evaluate_continuation.py                               # best_model.pt -> results_simple/report.html
    python evaluate_continuation.py --checkpoint checkpoints_simple/checkpoint_epoch_10.pt --output_dir results_epoch_10
    python evaluate_continuation.py --horizon_only --encodec_weights demo      # test a codec: no training needed

The baselines repeat, average, hold or loop the input, or use a linear map or the training mean. A fixed rule decides
whether the model works. The horizon shows how far ahead the embeddings are predictable at all. Writes report.html (open
it in a browser), results.json, figures and WAVs. You can run it during training.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH

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
    output_dir: str = setting("results_simple", "folder for report.html and the other files", type=file_path)
    num_examples: int = setting(8, "example pairs on the page", type=number(int, at_least=0, below=2**31))
    max_sound_pairs: int = setting(
        60, "maximum number of pairs to decode for log-mel and chroma", type=number(int, at_least=1)
    )
    horizon_only: bool = setting(False, "only measure how far ahead the codec's embeddings are predictable")
    seed: int = seed_setting("the choice of pairs")
    cache_dir: str | None = cache_setting()
    device: str = device_setting()
    encodec_weights: str | None = checkpoint_weights_setting("the checkpoint's; with --horizon_only, pretrained")


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
from common.files import check_output_folder, lock_folder
from common.progress import Progress
from dataset.pairs import METADATA_NAME, PairRow, read_metadata
from dataset_wav_pairs import WavPairsDataset, prepare_cache
from evaluation.baselines import fit
from evaluation.comparison import Comparison, Model, spread_over_tracks
from evaluation.examples import write_examples
from evaluation.figures import draw_diagnosis, draw_per_second
from evaluation.horizon import Split, draw_horizon, horizon_table, measure_horizon
from evaluation.report import write_report
from evaluation.results import measured_results, notes, write_json
from evaluation.sound import SOUND_S
from generate_continuation import decode_joined
from model_simple_transformer import SimpleTransformer
from training.checkpoint import load_checkpoint, load_codec
from training.curves import CURVES, draw_curves
from training.log import METRICS, read_metrics

FORMAT = "jingle_d results 3"
OUR_FILES = re.compile(
    r"example_\d+_(context|truth|model|ceiling|joined)\.(wav|png)|(curves|per_second|diagnosis|horizon)\.png"
)


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    check_output_folder("--output_dir", settings.output_dir)
    check_output_folder("--cache_dir", settings.cache_dir, is_written=False)
    check_is_ours(Path(settings.output_dir))
    read_metadata(Path(settings.dataset_dir, METADATA_NAME))  # an error in it should come before any work
    if settings.horizon_only:
        evaluate_codec(settings)
    else:
        evaluate_checkpoint(settings)
    return 0


def evaluate_codec(settings: Settings) -> None:
    """Measure the horizon alone: print it as a table, and write horizon.json and horizon.png."""
    codec = load_frozen_encodec(settings.encodec_weights or PRETRAINED, pick_device(settings.device))
    splits = open_splits_with_tracks(settings.dataset_dir, codec, settings.cache_dir)
    output_dir, progress = Path(settings.output_dir), Progress()
    output_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(output_dir, "an evaluation"):
        horizon = measure_horizon(splits, log_mel_splits(settings.dataset_dir, codec), codec.frame_rate, progress)
        progress.close()
        write_json(output_dir / "horizon.json", {"codec": codec.fingerprint, "horizon": horizon})
        if horizon["seconds"]:
            print(f"codec {codec.fingerprint}, {settings.dataset_dir}", horizon_table(horizon), sep="\n")
            draw_horizon(output_dir / "horizon.png", horizon)
    print(horizon["sentence"])


def evaluate_checkpoint(settings: Settings) -> None:
    """Compare the checkpoint with its baselines and write the report."""
    started, device, output_dir = time.monotonic(), pick_device(settings.device), Path(settings.output_dir)
    checkpoint = load_checkpoint(settings.checkpoint)  # only once, because a running training job may replace the file
    model = SimpleTransformer.from_checkpoint(checkpoint, device)
    codec = load_codec(checkpoint, settings.checkpoint, settings.encodec_weights, device)
    if codec.banner:
        print(codec.banner, file=sys.stderr)
    train, val = open_splits_with_tracks(settings.dataset_dir, codec, settings.cache_dir)
    if val.pairs.num_samples != checkpoint["num_samples"]:
        raise UserError(
            f"{settings.checkpoint}: trained on segments of {checkpoint['num_samples']} samples, but those in "
            f"{settings.dataset_dir} have {val.pairs.num_samples}; use the --dataset_dir it was trained on"
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(output_dir, "an evaluation"):
        prepare_cache([train.pairs, val.pairs])
        progress = Progress()
        log_mel = log_mel_splits(settings.dataset_dir, codec)
        horizon = measure_horizon((train, val), log_mel, codec.frame_rate, progress)
        fitted = fit(train.pairs, train.tracks, model.mean, model.std, progress)
        predictors = Model(lambda x: model(x.to(device)), lambda x: model.channel_regression(x.to(device)))
        comparison = Comparison(predictors, val.pairs, val.tracks, fitted, settings.seed)
        results = compare(comparison, train, horizon, settings, checkpoint, progress)
        progress.close()
        results["seconds"] = round(time.monotonic() - started, 1)
        for path in output_dir.iterdir():
            if OUR_FILES.fullmatch(path.name) and path.name not in results["files"]:
                path.unlink()  # from an earlier run
        write_report(output_dir / "report.html", write_json(output_dir / "results.json", results))
    print(*(results["verdict"][part] for part in ("sentence", "transformer", "limit")), sep="\n")
    if horizon["sentence"] not in results["verdict"]["limit"]:
        print(horizon["sentence"])
    print(f"{output_dir / 'report.html'}: open it in a browser", flush=True)


def compare(
    comparison: Comparison, train: Split, horizon: dict, settings: Settings, checkpoint: dict, progress: Progress
) -> dict[str, object]:
    """Compare all rows, write figures and examples, and return the content of results.json."""
    val, tracks, codec = comparison.dataset, comparison.tracks, comparison.codec
    metrics = Path(settings.checkpoint).parent / METRICS
    epochs = [line for line in read_metrics(metrics) if "epoch" in line]
    sound_pairs = spread_over_tracks(tracks, settings.max_sound_pairs, settings.seed, in_runs=True)
    errors, sound = comparison.measure(sound_pairs, progress)
    trained_on = {target for _, target in train.pairs.keys}
    copies = [index for index, (_, target) in enumerate(val.keys) if target in trained_on]
    shared_tracks = set(train.tracks) & set(tracks) | {tracks[index] for index in copies}
    results = measured_results(comparison, errors, sound, len(shared_tracks), horizon, checkpoint, epochs)

    folder = Path(settings.output_dir)
    chosen = spread_over_tracks(tracks, settings.num_examples, settings.seed)
    examples = write_examples(comparison, chosen, errors, rows_of(val), decode_joined, folder, progress)
    files = draw_figures(folder, results, metrics if epochs else None)
    files += [clip[kind] for example in examples for clip in example["files"].values() for kind in ("wav", "png")]
    segment_s = val.num_samples / codec.sample_rate
    results |= {
        "format": FORMAT,
        "checkpoint": {
            "path": printable(settings.checkpoint),
            "epoch": checkpoint["epoch"],
            "codec": codec.fingerprint,
            "codec_is_pretrained": codec.is_pretrained,
        },
        "dataset": {
            "path": printable(settings.dataset_dir),
            "pairs": len(val),
            "tracks": len(results["tracks"]),
            "shared_tracks": len(shared_tracks),
            "segment_s": segment_s,
            "sample_rate": codec.sample_rate,
            "sound_pairs": len(sound_pairs),
            "sound_s": min(SOUND_S, segment_s),
        },
        "settings": {name: asdict(settings)[name] for name in ("seed", "num_examples", "max_sound_pairs")},
        "examples": examples,
        "files": files,
    }
    return results | {"notes": notes(results, checkpoint, len(copies))}


def draw_figures(folder: Path, results: dict, metrics: Path | None) -> list[str]:
    """Draw the figures and return their names. metrics: the training log, if it has any epochs."""
    drawings = {"per_second.png": (draw_per_second, results["per_second"])}
    drawings["diagnosis.png"] = (draw_diagnosis, results["diagnosis"])
    if results["horizon"]["seconds"]:
        drawings["horizon.png"] = (draw_horizon, results["horizon"])
    if metrics:
        drawings[CURVES] = (draw_curves, metrics)
    for name, (draw, content) in drawings.items():
        draw(folder / name, content)
    return list(drawings)


def open_splits_with_tracks(
    dataset_dir: str, codec: Codec, cache_dir: str | None = None, use_cache: bool = True
) -> tuple[Split, Split]:
    """The training and the validation split, with the track of each pair."""
    datasets = [WavPairsDataset(Path(dataset_dir, name), codec, cache_dir, use_cache) for name in ("train", "val")]
    train, val = (Split(dataset, [row.source for row in rows_of(dataset)]) for dataset in datasets)
    return train, val


def log_mel_splits(dataset_dir: str, codec: Codec) -> tuple[Split, Split]:
    """The same splits as log-mel spectrograms, which are computed when they are read."""
    return open_splits_with_tracks(dataset_dir, LogMel(codec), use_cache=False)


def rows_of(dataset: WavPairsDataset) -> list[PairRow]:
    """The row in metadata.txt of each pair of a split."""
    path, split = dataset.split_dir.parent / METADATA_NAME, dataset.split_dir.name
    by_name = {row.name: row for row in read_metadata(path).pairs if row.split == split}
    for name in dataset.names:
        if name not in by_name:
            raise UserError(f"{path}: does not list {split}/{name}; create the dataset again with --overwrite")
    return [by_name[name] for name in dataset.names]


def check_is_ours(folder: Path) -> None:
    """Raise UserError if `folder` has results that this script did not write."""
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
