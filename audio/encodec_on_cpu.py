"""Run EnCodec's encoder and decoder in pieces, 2.5 times as fast on a CPU (benchmarks/NOTES.md).

EnCodec's convolutions are causal. In the encoder a frame depends on its own 320 samples and the 478 before them; in
the decoder's convolutions it depends on fewer than two frames before it. So the convolutions can run on pieces, each
with exactly the past it needs. Each piece runs on one core, and its activations stay in that core's cache. The LSTM
runs over the whole signal. The result equals EnCodec's own within 1e-6. For one waveform it depends neither on the rest
of the batch nor on the number of cores.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

import encodec.model
import torch
import torch.nn.functional as F
from encodec.modules import SLSTM, SConv1d
from encodec.modules.seanet import SEANetResnetBlock
from torch import nn

CHUNK_OVERLAP_FRAMES = 3  # a piece that starts this much early gives the same later frames as the whole signal
PIECE_FRAMES = 80  # keeps a piece's activations in a core's cache
LSTM_ITEMS = 4  # with two, the dataset's batches of eight take longer
LSTM_FRAMES = 96  # 4 x 96 rows fill the tiles of any matrix library, so no row is in a tile that is cut off
_USE_OF_CORES = threading.Lock()  # torch's number of threads is one setting for the whole process


class PiecewiseEncodec:
    """The encoder and decoder of an `EncodecModel` on the CPU. Its weight norm must be folded in."""

    def __init__(self, model: encodec.model.EncodecModel, hop_length: int):
        encoder, decoder = model.encoder.model, model.decoder.model
        lstm_at = next(i for i, layer in enumerate(encoder) if isinstance(layer, SLSTM))
        self.hop_length = hop_length
        self.encoder_convolutions, self.encoder_end = encoder[:lstm_at], encoder[lstm_at:]
        self.decoder_start, self.decoder_convolutions = decoder[:2], decoder[2:]
        self.receptive_field = receptive_field(self.encoder_convolutions)

    def encode(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Waveforms [B, 1, samples] -> embeddings [B, 128, ceil(samples / hop_length)]."""
        hop = self.hop_length

        def convolve(waveform: torch.Tensor, first: int, start: int, stop: int) -> torch.Tensor:
            if start * hop >= self.receptive_field and stop * hop <= waveform.shape[2]:
                return convolve_unpadded(
                    self.encoder_convolutions, waveform[:, :, start * hop - self.receptive_field : stop * hop]
                )
            # EnCodec pads the beginning, and the end if its last frame is incomplete.
            return self.encoder_convolutions(waveform[:, :, first * hop : stop * hop])[:, :, start - first :]

        hidden = in_pieces(convolve, waveforms, num_frames=-(-waveforms.shape[2] // hop))
        return batch_independent(self.encoder_end, hidden)

    def decode(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, 128, frames] -> waveforms [B, 1, frames * hop_length]."""

        def convolve(hidden: torch.Tensor, first: int, start: int, stop: int) -> torch.Tensor:
            return self.decoder_convolutions(hidden[:, :, first:stop])[:, :, (start - first) * self.hop_length :]

        hidden = batch_independent(self.decoder_start, embeddings)
        return in_pieces(convolve, hidden, num_frames=hidden.shape[2])


def in_pieces(convolve: Callable[..., torch.Tensor], batch: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Apply `convolve(item, first frame computed, first frame kept, end)` to pieces of each item and join them."""
    pieces = [
        (max(0, start - CHUNK_OVERLAP_FRAMES), start, min(start + PIECE_FRAMES, num_frames))
        for start in range(0, num_frames, PIECE_FRAMES)
    ]
    with one_thread_per_core() as pool:
        rows = [[pool.submit(convolve, item, *piece) for piece in pieces] for item in batch.split(1)]
        return torch.cat([torch.cat([piece.result() for piece in row], dim=2) for row in rows])


def batch_independent(layers: nn.Sequential, batch: torch.Tensor) -> torch.Tensor:
    """Apply layers with an LSTM so that an item gets the same bits alone as in a batch.

    The matrix library's algorithm depends on the number of rows, and the last rows of a product can get other bits than
    the rest. So the LSTM always runs on four items and chunks of 96 frames, padded if necessary. Then cached embeddings
    don't depend on how many segments were encoded together.
    """
    repeated = batch[-1:].expand(-len(batch) % LSTM_ITEMS, -1, -1)
    groups = torch.cat([batch, repeated]).split(LSTM_ITEMS)
    with one_thread_per_core() as pool:
        for layer in layers:
            groups = pipelined_lstm(layer, groups, pool) if isinstance(layer, SLSTM) else pool.map(layer, groups)
        return torch.cat(list(groups))[: len(batch)]


def pipelined_lstm(
    slstm: SLSTM, groups: Iterable[torch.Tensor], pool: concurrent.futures.Executor
) -> Iterator[torch.Tensor]:
    """Apply EnCodec's LSTM to each group [4, C, frames].

    Its layers run on different cores: while one works on a chunk of frames, the layer below works on the next chunk.
    The cores don't share the LSTM's thousands of small products, because threads that wait for each other take ten
    times as long when another program is running.
    """

    def run(layer: nn.LSTM, below: Future | None, chunk: torch.Tensor, before: Future | None) -> tuple:
        return layer(below.result()[0] if below else chunk, before.result()[1] if before else None)

    layers = single_layers(slstm.lstm)
    running = []
    for group in groups:
        before, top = [None] * len(layers), []
        frames = F.pad(group, (0, -group.shape[2] % LSTM_FRAMES)).permute(2, 0, 1)
        for chunk in frames.split(LSTM_FRAMES):
            below = None
            for number, layer in enumerate(layers):
                below = before[number] = pool.submit(run, layer, below, chunk, before[number])
            top.append(below)
        running.append((group, top))
    for group, top in running:
        output = torch.cat([chunk.result()[0] for chunk in top]).permute(1, 2, 0)[:, :, : group.shape[2]]
        yield output + group if slstm.skip else output


def single_layers(lstm: nn.LSTM) -> list[nn.LSTM]:
    """The layers of an LSTM as LSTMs of one layer, which share its weights."""
    layers = []
    for number in range(lstm.num_layers):
        layer = nn.LSTM(lstm.hidden_size if number else lstm.input_size, lstm.hidden_size, device="meta")
        for name, _ in list(layer.named_parameters()):
            setattr(layer, name, getattr(lstm, name.replace("_l0", f"_l{number}")))
        layers.append(layer)
    return layers


@contextlib.contextmanager
def one_thread_per_core() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    """Yield a pool with as many threads as torch had. Meanwhile torch uses one thread."""
    with _USE_OF_CORES:
        cores = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with concurrent.futures.ThreadPoolExecutor(cores) as pool:
                yield pool
        finally:
            torch.set_num_threads(cores)


def receptive_field(layers: nn.Sequential) -> int:
    """The number of samples before its own that a frame depends on in causal convolutions: 478 for the encoder.

    Counting from the last layer to the first, a convolution of kernel k and stride s turns n into n * s + k - s.
    """
    samples = 0
    for layer in reversed(layers):
        if isinstance(layer, SEANetResnetBlock):
            samples += receptive_field(layer.block)
        elif isinstance(layer, SConv1d):
            convolution = layer.conv.conv
            samples = samples * convolution.stride[0] + convolution.kernel_size[0] - convolution.stride[0]
    return samples


def convolve_unpadded(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Apply EnCodec's convolutions without padding to a piece [B, C, samples] that begins with its past.

    Each convolution shortens the signal by the past that it uses. x may be overwritten.
    """
    for layer in layers:
        if isinstance(layer, SConv1d):
            x = layer.conv.conv(x)
        elif isinstance(layer, SEANetResnetBlock):
            shortcut = layer.shortcut.conv.conv(x)
            x = convolve_unpadded(layer.block, x)
            x += shortcut[:, :, shortcut.shape[2] - x.shape[2] :]
        else:
            x = F.elu_(x)
    return x
