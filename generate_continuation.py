"""Continue music: the last 16 seconds of any audio file in, the next 16 seconds out.

    python generate_continuation.py song.mp3                     # -> continuations/song_continuation.wav and two more
    python generate_continuation.py *.flac --num_segments 4      # 64 s, each 16 s predicted from the 16 s before
    python generate_continuation.py song.wav --quantize          # through the 6 kbps codebooks

Three files for an input: NAME_context.wav is its end as it is; NAME_joined.wav is context and continuation
as the codec decodes them in one piece, so that nothing clicks where they meet; NAME_continuation.wav is
the second part of that. Made again, they are replaced; a file of that name from elsewhere is not.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import soundfile
import torch

from audio.frozen_encodec import HOP_LENGTH, FrozenEncodec, load_frozen_encodec, untrained_banner
from audio.segments import AudioError, read_last_segment, to_pcm16, write_wav
from common.arguments import file_path, number
from common.devices import pick_device
from common.errors import UserError, printable, run_script
from common.files import check_output_folder, remove_partial_files
from model_simple_transformer import SimpleTransformer
from training.checkpoint import load_checkpoint

PARTS = ("context", "continuation", "joined")
OURS = "Jingle_D continuation"  # the comment in the header of what this writes


@torch.no_grad()
def continue_embeddings(model: SimpleTransformer, context: torch.Tensor, num_segments: int = 1) -> torch.Tensor:
    """Embeddings [B, 128, T] of a segment -> of the `num_segments` after it, [B, 128, num_segments * T].

    Each is predicted from the one before.
    """
    device = next(model.parameters()).device
    segments = [context.to(device)]
    for _ in range(num_segments):
        segments.append(model(segments[-1]))
    return torch.cat(segments[1:], dim=2)


def decode_joined(codec: FrozenEncodec, context: torch.Tensor, continuation: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Decode embeddings [B, 128, T] and what follows them [B, 128, N] in one piece.

    Returns the waveforms [B, 1, (T + N) * 320] and the sample at which the continuation begins. Decoded
    apart, the decoder would start the continuation from nothing, and the seam would click.
    """
    joined = torch.cat([context.to(codec.device), continuation.to(codec.device)], dim=2)
    return codec.decode(joined).cpu(), context.shape[2] * HOP_LENGTH


def check_codec(checkpoint: dict, codec: FrozenEncodec, path: str | os.PathLike) -> None:
    """UserError that names both codecs if the checkpoint was not trained on this one's embeddings."""
    if checkpoint["codec"] != codec.fingerprint:
        raise UserError(
            f"{path}: trained on embeddings of codec {checkpoint['codec']}, but --encodec_weights gives "
            f"{codec.fingerprint}; use the weights it was trained with"
        )


def output_names(inputs: list[str], output_dir: Path) -> list[Path]:
    """The common beginning of each input's output paths.

    UserError if two inputs would share theirs, or if a file is in the way that this script did not write.
    """
    names: dict[str, str] = {}
    for path in inputs:
        name = Path(path).stem.casefold()  # macOS takes Song and song for one
        if names.setdefault(name, path) != path:
            raise UserError(f"{path}: would overwrite the continuation of {names[name]}; give them two --output_dir")
    written = {output_dir / f"{Path(path).stem}_{part}.wav" for path in inputs for part in PARTS}
    for path in inputs:
        if any(target.exists() and os.path.samefile(path, target) for target in written if Path(path).exists()):
            raise UserError(f"{path}: would be overwritten by what is written; choose another --output_dir")
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("inputs", nargs="+", type=file_path, metavar="INPUT", help="audio files, at least as long as a segment")
    add("--checkpoint", type=file_path, default="checkpoints_simple/best_model.pt", help="(default: %(default)s)")
    add("--output_dir", type=file_path, default="continuations", help="(default: %(default)s)")
    add("--num_segments", type=number(int, at_least=1, at_most=1000), default=1, help="how many (default: %(default)s)")
    add("--quantize", action="store_true", help="snap the prediction to the codec's 6 kbps codebooks")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="(default: %(default)s)")
    add("--encodec_weights", type=file_path, default="pretrained", help="pretrained, untrained, or a file or folder")
    args = parser.parse_args()

    output_dir, device = Path(args.output_dir), pick_device(args.device)
    check_output_folder("--output_dir", output_dir)
    names = output_names(args.inputs, output_dir)
    checkpoint = load_checkpoint(args.checkpoint)
    model = SimpleTransformer.from_checkpoint(checkpoint, device)
    sample_rate, duration = checkpoint["sample_rate"], checkpoint["num_samples"] // checkpoint["sample_rate"]
    contexts = []
    for path in args.inputs:  # every input is looked at before the first is worked on
        try:
            contexts.append(read_last_segment(path, duration, sample_rate))
        except AudioError as error:
            raise UserError(f"{printable(path)}: {error}") from error
    codec = load_frozen_encodec(args.encodec_weights, device)
    check_codec(checkpoint, codec, args.checkpoint)
    print(untrained_banner(codec), end="\n" if untrained_banner(codec) else "", file=sys.stderr)
    output_dir.mkdir(parents=True, exist_ok=True)
    remove_partial_files(output_dir, min_age_s=3600)

    for path, name, waveform in zip(args.inputs, names, contexts, strict=True):
        context = codec.encode(torch.from_numpy(waveform).view(1, 1, -1))
        continuation = continue_embeddings(model, context, args.num_segments)
        if args.quantize:
            continuation = codec.quantize(continuation)
        if not continuation.isfinite().all():
            raise UserError(f"{args.checkpoint}: its continuation of {path} is not finite; use another checkpoint")
        joined, seam = decode_joined(codec, context, continuation)
        pcm16, clipped = to_pcm16(joined.flatten().numpy())
        waveforms = (to_pcm16(waveform)[0], pcm16[seam:], pcm16)
        for part, samples in zip(PARTS, waveforms, strict=True):
            write_wav(f"{name}_{part}.wav", samples, sample_rate, OURS)
        note = f", {clipped} samples clipped" if clipped else ""
        print(f"{printable(path)} -> {printable(name)}_{{context,continuation,joined}}.wav{note}", flush=True)
    return 0


if __name__ == "__main__":
    run_script(main)
