"""Continue music: predict the 16 seconds that follow the end of any audio file.

    python generate_continuation.py song.mp3                     # -> three WAVs in continuations/
    python generate_continuation.py *.flac --num_segments 4      # 64 s, each 16 s predicted from the 16 s before
    python generate_continuation.py song.wav --quantize          # through the 6 kbps codebooks

Each input gives three files. NAME_context.wav is its last 16 seconds, mono at the codec's rate but not encoded.
NAME_joined.wav is context and continuation, decoded in one piece so that there is no click between them.
NAME_continuation.wav is the second part of NAME_joined.wav. Another run replaces these files, but never a file that
this script did not write.
Inputs that cannot be continued are named and skipped. The exit status is then 1.
"""

from __future__ import annotations

import functools
import os
import sys
import unicodedata
from dataclasses import MISSING, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH

from common.arguments import (
    answer_early,
    checkpoint_setting,
    checkpoint_weights_setting,
    device_setting,
    file_path,
    number,
    parse_settings,
    setting,
)


@dataclass
class Settings:
    inputs: list[str] = setting(MISSING, "audio files", nargs="+", type=file_path, metavar="INPUT")  # noqa: RUF009
    checkpoint: str = checkpoint_setting()
    output_dir: str = setting("continuations", "folder for the WAVs", type=file_path)
    num_segments: int = setting(1, "number of segments to predict", type=number(int, at_least=1, at_most=1000))
    quantize: bool = setting(False, "quantize the prediction with the codec's 6 kbps codebooks")
    device: str = device_setting()
    encodec_weights: str | None = checkpoint_weights_setting()


if __name__ == "__main__":
    answer_early(Settings, __doc__)

import numpy as np
import soundfile
import torch

from audio.codec import Codec
from audio.reading import AudioError
from audio.segments import MAX_SAMPLE, WAV_COMMENT, read_last_samples, to_pcm16, write_wav
from common.devices import pick_device
from common.errors import UserError, printable, run_script
from common.files import check_output_folder, remove_partial_files
from common.progress import Progress
from common.workers import Workers
from model_simple_transformer import SimpleTransformer
from training.checkpoint import load_checkpoint, load_codec

PARTS = ("context", "continuation", "joined")
OURS = f"{WAV_COMMENT} continuation"  # the comment in the header of files that this script writes
SILENCE = 1e-3  # relative to full scale: -60 dB
MAX_NAME_BYTES = 255  # limit for a file name on all common file systems


@torch.no_grad()
def continue_embeddings(model: SimpleTransformer, context: torch.Tensor, num_segments: int = 1) -> torch.Tensor:
    """Embeddings [B, C, T] of a segment -> embeddings [B, C, num_segments * T] of the segments after it.

    Each segment is predicted from the one before.
    """
    device = next(model.parameters()).device
    segments = [context.to(device)]
    for _ in range(num_segments):
        segments.append(model(segments[-1]))
    return torch.cat(segments[1:], dim=2)


def decode_joined(codec: Codec, context: torch.Tensor, continuation: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Decode a context [B, C, T] and its continuation [B, C, N] in one piece.

    Returns the waveforms [B, 1, (T + N) * hop_length] and the sample at which the continuation begins. If they were
    decoded separately, the decoder would start the continuation from silence, with a click.
    """
    joined = torch.cat([context.to(codec.device), continuation.to(codec.device)], dim=2)
    return codec.decode(joined).cpu(), context.shape[2] * codec.hop_length


@dataclass
class End:
    """The end of a song: float32 [samples], and the audio before it for the codec's warm-up (empty if too short)."""

    segment: np.ndarray
    before: np.ndarray
    note: str = ""  # what is wrong with the file, or that its end is silent


def read_end(path: str, num_samples: int, context_samples: int, sample_rate: int) -> End | str:
    """The last `num_samples` of a song and `context_samples` before them, or why it cannot be continued.

    A song cannot be continued if it is unreadable or too short, or if its end contains invalid samples.
    """
    try:
        samples, note = read_last_samples(path, num_samples + context_samples, sample_rate)
    except AudioError as error:
        return str(error)
    if len(samples) < num_samples:
        seconds, needed = len(samples) / sample_rate, num_samples / sample_rate
        return f"{seconds:.2f} s long; a continuation needs at least {needed:g} s"
    if not (np.abs(samples) <= MAX_SAMPLE).all():
        return f"its end contains NaN or samples beyond {MAX_SAMPLE:.0f} times full scale"
    loud = np.flatnonzero(np.abs(samples) > SILENCE)
    silent_s = (len(samples) - 1 - loud[-1] if len(loud) else len(samples)) / sample_rate
    if silent_s > 1:
        note = "; ".join(filter(None, [note, f"ends in {silent_s:.1f} s of silence and is continued from there"]))
    if len(samples) < num_samples + context_samples:
        return End(samples[-num_samples:], samples[:0], note)
    return End(samples[context_samples:], samples[:context_samples], note)


def encode_end(codec: Codec, segment: np.ndarray, before: np.ndarray) -> torch.Tensor:
    """Embeddings [1, C, T] of a segment [samples], encoded together with the audio `before` it in the song."""
    waveform = torch.from_numpy(np.concatenate([before, segment])).view(1, 1, -1)
    return codec.encode(waveform)[:, :, len(before) // codec.hop_length :]


def output_names(inputs: list[str], output_dir: Path) -> list[Path]:
    """The common prefix of each input's output paths.

    Raises UserError if two inputs share a prefix, if a name is too long, or if an output would overwrite a file that
    this script did not write.
    """
    names: dict[str, str] = {}
    for path in inputs:
        stem = Path(path).stem
        # On macOS, Song and song are the same file, and so are the two Unicode forms of an accent.
        name = unicodedata.normalize("NFC", stem).casefold()
        if names.setdefault(name, path) != path:
            what = f"would overwrite the continuation of {names[name]}"
            raise UserError(f"{path}: {what}; run it separately with another --output_dir")
        if len(os.fsencode(f"{stem}_continuation.wav")) > MAX_NAME_BYTES:
            raise UserError(f"{path}: its name is too long for the output names; use a copy with a shorter name")
    written = {output_dir / f"{Path(path).stem}_{part}.wav" for path in inputs for part in PARTS}
    for path in inputs:
        if any(target.exists() and os.path.samefile(path, target) for target in written if Path(path).exists()):
            raise UserError(f"{path}: would be overwritten by an output; choose another --output_dir")
    for target in written:
        if target.exists() and not _is_ours(target):
            raise UserError(f"{target}: is not from this script and would be overwritten; choose another --output_dir")
    return [output_dir / Path(path).stem for path in inputs]


def _is_ours(path: Path) -> bool:
    try:
        with soundfile.SoundFile(os.fsencode(path)) as audio:
            return audio.comment == OURS
    except (soundfile.SoundFileError, TypeError):
        return False


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    output_dir, device = Path(settings.output_dir), pick_device(settings.device)
    check_output_folder("--output_dir", output_dir)
    names = output_names(settings.inputs, output_dir)
    checkpoint = load_checkpoint(settings.checkpoint)
    model = SimpleTransformer.from_checkpoint(checkpoint, device)
    codec = load_codec(checkpoint, settings.checkpoint, settings.encodec_weights, device)
    ends = []
    sizes = {"num_samples": checkpoint["num_samples"], "context_samples": codec.warmup_frames * codec.hop_length}
    read = functools.partial(read_end, **sizes, sample_rate=codec.sample_rate)
    with Workers(1) as workers:  # its own process, because a damaged file may crash it
        read_ends = workers.map(read, settings.inputs, lambda _, reason: reason)
        for path, name, end in zip(settings.inputs, names, read_ends, strict=True):
            if isinstance(end, str):
                print(f"skipped {printable(path)}: {end}", file=sys.stderr, flush=True)
                continue
            if end.note:
                print(f"note {printable(path)}: {end.note}", file=sys.stderr)
            ends.append((path, name, end))
    if not ends:
        return 1
    if codec.banner:
        print(codec.banner, file=sys.stderr)
    output_dir.mkdir(parents=True, exist_ok=True)
    remove_partial_files(output_dir)
    progress = Progress()
    for path, name, end in progress.over(ends, len(ends), "songs continued"):
        context = encode_end(codec, end.segment, end.before)
        continuation = continue_embeddings(model, context, settings.num_segments)
        if settings.quantize:
            continuation = codec.quantize(continuation)
        if not continuation.isfinite().all():
            raise UserError(f"{settings.checkpoint}: the continuation of {path} is not finite; use another checkpoint")
        joined, seam = decode_joined(codec, context, continuation)
        pcm16, clipped = to_pcm16(joined.flatten().numpy())
        waveforms = (to_pcm16(end.segment)[0], pcm16[seam:], pcm16)
        for part, samples in zip(PARTS, waveforms, strict=True):
            write_wav(f"{name}_{part}.wav", samples, codec.sample_rate, OURS)
        note = f", {clipped} samples clipped" if clipped else ""
        progress.print(f"{printable(path)} -> {printable(name)}_{{context,continuation,joined}}.wav{note}")
    return 1 if len(ends) < len(settings.inputs) else 0


if __name__ == "__main__":
    run_script(main)
