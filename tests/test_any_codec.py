"""A different codec works in the whole pipeline, so nothing else depends on EnCodec's numbers."""

import json

import pytest
import soundfile
import torch
from conftest import main_of, write_track
from toy_codec import ToyCodec

import train_simple_worker
from audio.log_mel import LogMel
from dataset_wav_pairs import WavPairsDataset
from training import checkpoint

CODEC = ToyCodec()


@pytest.fixture
def toy(monkeypatch):
    """Every command loads the toy codec, whatever --encodec_weights says."""
    for module in (train_simple_worker, checkpoint):
        monkeypatch.setattr(module, "load_frozen_encodec", lambda *_: CODEC)


def test_another_codec_from_music_to_the_report(tmp_path, toy):
    for number in range(6):
        write_track(tmp_path / "music" / f"{number}.wav", 8, seed=number)
    data, run, device = tmp_path / "data", tmp_path / "run", ("--device", "cpu")
    paths = ("--input_dir", tmp_path / "music", "--output_dir", data, "--num_workers", 1)
    create = ("create_dataset_pairs_wav.py", *paths, "--segment_duration", 1, "--sample_rate", CODEC.sample_rate)
    assert main_of(*create) == 0
    info = soundfile.info(data / "train/pair_0000_input.wav")
    assert (info.samplerate, info.frames) == (16_000, 16_000)

    train = ("train_simple_ddp.py", "--dataset_dir", data, "--checkpoint_dir", run, *device)
    settings = ("--epochs", 2, "--num_layers", 1, "--num_heads", 4, "--encodec_weights", "untrained")
    assert main_of(*train, *settings) == 0
    saved = checkpoint.load_checkpoint(run / "best_model.pt")
    assert saved["codec"] == "toy-1" and saved["model_config"]["encoding_dim"] == 64

    best = ("--checkpoint", run / "best_model.pt", *device)
    generate = ("generate_continuation.py", tmp_path / "music/0.wav", "--output_dir", tmp_path / "out", "--quantize")
    assert main_of(*generate, *best) == 0
    for part, frames in (("context", 16_000), ("continuation", 16_000), ("joined", 32_000)):
        info = soundfile.info(tmp_path / f"out/0_{part}.wav")
        assert (info.samplerate, info.frames) == (16_000, frames)

    evaluate = ("evaluate_continuation.py", "--dataset_dir", data, "--output_dir", tmp_path / "results")
    assert main_of(*evaluate, *best, "--num_examples", 1) == 0
    results = json.loads((tmp_path / "results/results.json").read_text())
    assert results["checkpoint"]["codec"] == "toy-1" and results["dataset"]["sample_rate"] == 16_000
    assert results["horizon"]["seconds"][0] == 1 / 80 and results["horizon"]["seconds"][-1] == 1
    assert "toy-1" in (tmp_path / "results/report.html").read_text()


def test_frames_need_not_divide_a_segment(tmp_path, run):
    """A second is 53 1/3 of these frames, and the warm-up is longer than a segment."""
    write_track(tmp_path / "music" / "0.wav", 8, seed=0)
    paths = ("--input_dir", tmp_path / "music", "--output_dir", tmp_path / "data", "--num_workers", 1)
    run("create_dataset_pairs_wav.py", *paths, "--segment_duration", 1, "--sample_rate", 16_000)
    dataset = WavPairsDataset(tmp_path / "data" / "train", ToyCodec(hop_length=300, warmup_frames=60))
    encoded, cached = dataset[1], dataset[1]
    assert encoded[1].shape == (64, 54) and all(map(torch.equal, encoded, cached))


def test_a_log_mel_spectrogram_looks_back_as_far_as_its_warmup_only_and_has_no_empty_band(codec, rng):
    mel = LogMel(codec)
    waveform = torch.from_numpy(rng.normal(size=(1, 1, 24_000))).float()
    spectrogram = mel.encode(waveform)
    assert spectrogram.shape == (1, 128, 75) and mel.encode(waveform[:, :, :23_999]).shape == (1, 128, 75)
    changed = waveform.clone()
    changed[:, :, 320 * 40 :] = 0
    torch.testing.assert_close(mel.encode(changed)[:, :, :40], spectrogram[:, :, :40])
    behind = mel.encode(waveform[:, :, 320 * (40 - mel.warmup_frames) :])[:, :, mel.warmup_frames :]
    torch.testing.assert_close(behind, spectrogram[:, :, 40:])
    assert (spectrogram > -4).all(), "noise must be heard in every band"
    louder = mel.encode(10 * waveform) - spectrogram
    torch.testing.assert_close(louder, torch.full_like(louder, 2), atol=1e-2, rtol=0)
