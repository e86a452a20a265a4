"""Encoding and decoding 16-second clips, against EnCodec's own encoder and decoder."""

from __future__ import annotations

import torch

from audio.frozen_encodec import FrozenEncodec
from benchmarks.measure import Row, best_of_alternating


@torch.no_grad()
def run(codec: FrozenEncodec) -> list[Row]:
    """Four clips at a time, the two sides in turn."""
    generator = torch.Generator().manual_seed(0)
    waveforms = torch.randn(4, 1, 16 * 24000, generator=generator) * 0.1
    embeddings = codec.model.encoder(waveforms)
    error = (codec.encode(waveforms) - embeddings).abs().max().item() / embeddings.abs().max().item()
    ours, theirs = best_of_alternating(lambda: codec.encode(waveforms), lambda: codec.model.encoder(waveforms))
    rows = [Row("encoding, 16 s clips", "EncodecModel.encoder", theirs / ours, 2.2, f"relative error {error:.0e}")]
    decoded = codec.model.decoder(embeddings)
    error = (codec.decode(embeddings) - decoded).abs().max().item()
    ours, theirs = best_of_alternating(lambda: codec.decode(embeddings), lambda: codec.model.decoder(embeddings))
    rows.append(Row("decoding, 16 s clips", "EncodecModel.decoder", theirs / ours, None, f"error {error:.0e}"))
    return rows
