"""Save and load checkpoints: tensors and plain values, written atomically and checked when read."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch

from audio.frozen_encodec import FrozenEncodec, load_frozen_encodec
from common.errors import UserError
from common.files import atomic_write

FORMAT = 4
LAST, BEST = "last.pt", "best_model.pt"
FOLDER = 0x10  # the attribute of a folder in a zip file


def save_checkpoint(paths: Iterable[Path], checkpoint: dict, sync: bool = True) -> None:
    """Write a checkpoint atomically to each of `paths`. With `sync`, wait until it is on the disk."""
    content = io.BytesIO()
    torch.save(checkpoint | {"format": FORMAT}, content)
    for path in paths:
        atomic_write(path, content.getbuffer(), sync)


def load_checkpoint(path: str | os.PathLike, device: str | torch.device = "cpu") -> dict:
    """Read a checkpoint onto `device`: a dict of tensors and plain values. Nothing in the file is executed.

    A model is rebuilt from it by `SimpleTransformer.from_checkpoint`. Raises UserError if the file is missing,
    damaged (torch stores a CRC-32 of every tensor), of an earlier version, or not a checkpoint of this project.
    """
    try:
        content = io.BytesIO(Path(path).read_bytes())  # read once: a running training job may replace the file
        with zipfile.ZipFile(content) as archive:
            # torch does not check the CRC, and leaves memory uninitialized for an entry marked as a folder.
            if archive.testzip() is not None or any(entry.external_attr & FOLDER for entry in archive.infolist()):
                raise ValueError("wrong CRC-32, or a folder")
        content.seek(0)
        checkpoint = torch.load(content, map_location=device, weights_only=True)
        version = checkpoint["format"]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint; train first (train_simple_ddp.py) or choose another") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; use a checkpoint in it, such as {BEST}") from error
    except OSError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise many kinds for a damaged or foreign file
        raise UserError(f"{path}: damaged, or not a checkpoint of this project; use another") from error
    if version != FORMAT:
        raise UserError(f"{path}: from an earlier version of this project; train again")
    return checkpoint


def load_codec(checkpoint: dict, path: str | os.PathLike, weights: str | None, device: torch.device) -> FrozenEncodec:
    """Load the codec that the checkpoint at `path` was trained with, from `weights` or from where it was then.

    Raises UserError if the weights are missing, or are those of a different codec.
    """
    trained_with = checkpoint["encodec_weights"]
    try:
        codec = load_frozen_encodec(weights or trained_with, device)
    except UserError as error:
        if weights:
            raise
        raise UserError(
            f"{path}: trained with --encodec_weights {trained_with}, which cannot be loaded: {error}"
        ) from error
    if codec.fingerprint != checkpoint["codec"]:
        raise UserError(
            f"{path}: trained on embeddings of codec {checkpoint['codec']} (--encodec_weights {trained_with}), but "
            f"--encodec_weights {weights or trained_with} is {codec.fingerprint}; use the weights it was trained with"
        )
    return codec


def find_run(folder: Path) -> dict | None:
    """The checkpoint from which the run in `folder` resumes; None if there is no run, or none with a finished epoch.

    Raises UserError if last.pt is damaged, or missing although there are other checkpoints. The message names the
    latest one that can replace it.
    """
    others = [path for path in (*folder.glob("checkpoint_epoch_*.pt"), folder / BEST) if path.exists()]
    if not others and not (folder / LAST).exists():
        return None
    try:
        saved = load_checkpoint(folder / LAST)
        return saved if saved["epoch"] else None
    except UserError as error:
        if "earlier version" in str(error):
            raise
        usable = [(checkpoint["epoch"], path) for path in others if (checkpoint := _load_if_whole(path))]
        offer = f"copy {max(usable)[1]} over it to resume from there, " if usable else ""
        state = "damaged, or not this project's" if (folder / LAST).exists() else "missing"
        raise UserError(
            f"{folder / LAST}: {state}; {offer}choose another --checkpoint_dir, or add --resume never"
        ) from error


def remove_run(folder: Path) -> None:
    """Remove the checkpoints of an earlier run. If one is not this project's, raises UserError and removes nothing."""
    paths = [p for p in (folder / LAST, folder / BEST, *folder.glob("checkpoint_epoch_*.pt")) if p.exists()]
    for path in paths:
        load_checkpoint(path)
    for path in paths:
        path.unlink()


def _load_if_whole(path: Path) -> dict | None:
    try:
        return load_checkpoint(path)
    except UserError:
        return None
