"""A control for the representation: train the same transformer on log-mel spectrograms instead of embeddings.

    python benchmarks/log_mel_control.py --dataset_dir dataset_pairs_wav --checkpoint_dir checkpoints_log_mel

Pairs, model, loss and baselines are the same, but a log-mel spectrogram has no phase. Settings that are not flags here
are the defaults of train_simple_ddp.py. If it is interrupted, run it again: it resumes.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from audio.frozen_encodec import load_frozen_encodec
from audio.log_mel import LogMel
from common.arguments import dataset_setting, file_path, number, parse_settings, setting
from common.devices import pick_device
from common.errors import run_script
from common.progress import Progress
from evaluate_continuation import open_splits_with_tracks
from evaluation.baselines import fit
from evaluation.comparison import Comparison, Model
from evaluation.measures import TrackErrors
from evaluation.results import gather_evidence, table_rows
from evaluation.verdict import verdict
from model_simple_transformer import SimpleTransformer
from train_simple_worker import train_worker
from training.checkpoint import BEST, load_checkpoint
from training.config import TrainConfig

LIKE_CODEC = "demo"  # the codec with the channels and the hop length to use; they are EnCodec's too


@dataclass
class Settings:
    dataset_dir: str = dataset_setting()
    checkpoint_dir: str = setting("checkpoints_log_mel", "folder for the checkpoints", type=file_path)
    epochs: int = setting(200, "maximum number of epochs", type=number(int, at_least=1))
    lr: float = setting(1e-4, "learning rate", type=number(float, above=0))


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    device, progress = pick_device("auto"), Progress()
    codec = LogMel(load_frozen_encodec(LIKE_CODEC, device))
    train, val = open_splits_with_tracks(settings.dataset_dir, codec)  # an error in them comes before the training
    config = TrainConfig(**asdict(settings), encodec_weights=LIKE_CODEC)
    train_worker(config, codec=codec)
    checkpoint = load_checkpoint(Path(settings.checkpoint_dir, BEST))
    model = SimpleTransformer.from_checkpoint(checkpoint, device)
    fitted = fit(train.pairs, train.tracks, model.mean, model.std, progress)
    predictors = Model(lambda x: model(x.to(device)), lambda x: model.channel_regression(x.to(device)))
    errors, _ = Comparison(predictors, val.pairs, val.tracks, fitted, config.seed).measure([], progress)
    progress.close()
    by_tracks = TrackErrors(errors, val.tracks)
    print(f"epoch {checkpoint['epoch']}, {len(val.tracks)} validation pairs of {len(by_tracks.scale)} tracks")
    elements = codec.embedding_dim * val.pairs.num_frames
    for row in table_rows(errors, by_tracks, {}, val.tracks, elements).values():
        if "track_skill" in row:
            low, high = row["skill_interval"]
            print(f"{row['label']:40s} skill {row['track_skill']:+.3f} ({low:+.3f} to {high:+.3f})")
    words = verdict(gather_evidence(by_tracks, 0))
    print(words["sentence"], words["transformer"], sep="\n")
    return 0


if __name__ == "__main__":
    run_script(main)
