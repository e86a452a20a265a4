"""A control for the representation: the same transformer on log-mel spectrograms in place of the codec's embeddings.

    python benchmarks/log_mel_control.py --dataset_dir dataset_pairs_wav --checkpoint_dir checkpoints_log_mel

Same pairs, same model, same loss, same baselines. What differs is that a log-mel spectrogram has no phase. A training
that was interrupted resumes. Other settings of train_simple_ddp.py are its defaults, but for those given here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from audio.frozen_encodec import load_frozen_encodec
from audio.log_mel import LogMel
from common.arguments import dataset_setting, file_path, number, parse_settings, setting
from common.devices import pick_device
from common.errors import run_script
from common.progress import Progress
from dataset.pairs import METADATA_NAME, read_metadata
from dataset_wav_pairs import WavPairsDataset
from evaluation.baselines import fit
from evaluation.comparison import Comparison, Model
from evaluation.horizon import Split
from evaluation.measures import TrackErrors
from evaluation.results import gather_evidence, table_rows
from evaluation.verdict import verdict
from model_simple_transformer import SimpleTransformer
from train_simple_worker import train_worker
from training.checkpoint import BEST, load_checkpoint
from training.config import TrainConfig


@dataclass
class Settings:
    dataset_dir: str = dataset_setting()
    checkpoint_dir: str = setting("checkpoints_log_mel", "where the checkpoints go", type=file_path)
    epochs: int = setting(200, "train for at most this many", type=number(int, at_least=1))
    lr: float = setting(1e-4, "learning rate", type=number(float, above=0))
    seed: int = setting(42, "of the training", type=number(int, at_least=0))
    like_codec: str = setting("demo", "the codec whose channels and hop the spectrogram has", type=file_path)


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    device = pick_device("auto")
    codec = LogMel(load_frozen_encodec(settings.like_codec, device))
    config = TrainConfig(
        dataset_dir=settings.dataset_dir,
        checkpoint_dir=settings.checkpoint_dir,
        epochs=settings.epochs,
        lr=settings.lr,
        seed=settings.seed,
        encodec_weights=settings.like_codec,
    )
    train_worker(config, codec=codec)
    checkpoint = load_checkpoint(Path(settings.checkpoint_dir, BEST))
    model = SimpleTransformer.from_checkpoint(checkpoint, device)
    sources = {row.name: row.source for row in read_metadata(Path(settings.dataset_dir, METADATA_NAME)).pairs}
    train, val = (split_of(Path(settings.dataset_dir, name), codec, sources) for name in ("train", "val"))
    progress = Progress()
    fitted = fit(train.pairs, train.tracks, model.mean, model.std, progress)
    trained = Model(lambda x: model(x.to(device)), lambda x: model.channel_regression(x.to(device)))
    comparison = Comparison(trained, val.pairs, val.tracks, fitted, settings.seed)
    errors, _ = comparison.measure([], progress)
    progress.close()
    by_tracks = TrackErrors(errors, val.tracks)
    elements = codec.embedding_dim * val.pairs.num_frames
    print(f"epoch {checkpoint['epoch']}, {len(val.tracks)} validation pairs of {len(by_tracks.scale)} tracks")
    for row in table_rows(errors, by_tracks, {}, val.tracks, elements).values():
        if "track_skill" in row:
            low, high = row["skill_interval"]
            print(f"{row['label']:40s} skill {row['track_skill']:+.3f} ({low:+.3f} to {high:+.3f})")
    words = verdict(gather_evidence(by_tracks, 0))
    print(words["sentence"], words["transformer"], sep="\n")
    return 0


def split_of(folder: Path, codec: LogMel, sources: dict[str, str]) -> Split:
    dataset = WavPairsDataset(folder, codec)
    return Split(dataset, [sources[dataset.name(index)] for index in range(len(dataset))])


if __name__ == "__main__":
    run_script(main)
