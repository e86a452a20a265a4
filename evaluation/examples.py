"""The examples of a report: WAVs and spectrograms of pairs and of their continuations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from audio.codec import Codec
from audio.segments import to_pcm16, write_wav
from common.progress import Progress
from dataset.pairs import PairRow
from evaluation.comparison import Comparison, read_wav
from evaluation.figures import mel_decibels, write_spectrogram
from evaluation.measures import Errors

DecodeJoined = Callable[[Codec, torch.Tensor, torch.Tensor], tuple[torch.Tensor, int]]


def write_examples(
    comparison: Comparison,
    chosen: list[int],
    errors: dict[str, Errors],
    rows: list[PairRow],
    decode_joined: DecodeJoined,
    folder: Path,
    progress: Progress,
) -> list[dict[str, object]]:
    """Write the clips of the pairs `chosen`; return the `examples` of results.json. rows: from metadata.txt."""
    examples = []
    for number, index in enumerate(chosen, 1):
        error, scale = (errors[name]["seconds"][index].sum() for name in ("model", "training_mean"))
        row, files = rows[index], write_clips(comparison, index, decode_joined, folder / f"example_{number:02d}")
        about = {"pair": row.name, "source": row.source, "start_s": row.start_s}
        examples.append(about | {"skill": float(1 - error / max(scale, 1e-9)), "files": files})
        progress(number, len(chosen), "examples written")
    return examples


def write_clips(
    comparison: Comparison, index: int, decode_joined: DecodeJoined, prefix: Path
) -> dict[str, dict[str, object]]:
    """Write the clips of pair `index` as PREFIX_NAME.wav and .png; return each one's files and seconds.

    context and truth are the dataset's WAVs. joined is the context and the model's continuation decoded in one piece,
    as generate_continuation.py does it. model is its second half, and ceiling the same with the true continuation. All
    spectrograms of a pair share a scale.
    """
    codec, (source, target) = comparison.codec, comparison.dataset[index]
    clips = dict(zip(("context", "truth"), map(read_wav, comparison.dataset.paths(index)), strict=True))
    for name, continuation in (("model", comparison.predict(source, index)), ("ceiling", target)):
        waveform, seam = decode_joined(codec, source[None], continuation[None])
        joined = waveform.flatten().numpy()
        clips[name] = joined[seam:]
        clips.setdefault("joined", joined)
    decibels = {name: mel_decibels(clip.clip(-1, 1), codec.sample_rate) for name, clip in clips.items()}
    top_db = max(decibels["context"].max(), decibels["truth"].max())
    files = {}
    for name, clip in clips.items():
        wav, png = (prefix.with_name(f"{prefix.name}_{name}.{kind}") for kind in ("wav", "png"))
        write_wav(wav, to_pcm16(clip)[0], codec.sample_rate)
        write_spectrogram(png, decibels[name], top_db)
        files[name] = {"wav": wav.name, "png": png.name, "seconds": len(clip) / codec.sample_rate}
    return files
