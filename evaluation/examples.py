"""The examples of evaluate_continuation.py: WAVs and spectrograms of a pair and of its continuation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from audio.codec import Codec
from audio.segments import to_pcm16, write_wav
from evaluation.comparison import Comparison, read_wav
from evaluation.figures import mel_decibels, write_spectrogram

DecodeJoined = Callable[[Codec, torch.Tensor, torch.Tensor], tuple[torch.Tensor, int]]


def write_example(
    comparison: Comparison, index: int, decode_joined: DecodeJoined, stem: str, folder: Path
) -> dict[str, object]:
    """Write the clips of pair `index` as STEM_NAME.wav and .png; what results.json says of the files.

    context and truth are the dataset's own; model and ceiling are the second halves of context and embedding decoded
    in one piece, as generate_continuation.py does it (`decode_joined`); joined is that piece. All spectrograms of a
    pair share a scale.
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
        wav, png = f"{stem}_{name}.wav", f"{stem}_{name}.png"
        write_wav(folder / wav, to_pcm16(clip)[0], codec.sample_rate)
        write_spectrogram(folder / png, decibels[name], top_db)
        files[name] = {"wav": wav, "png": png, "seconds": len(clip) / codec.sample_rate}
    return {"files": files}
