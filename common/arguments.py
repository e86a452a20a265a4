"""Command-line flags from dataclasses: each field becomes the flag of the same name.

@dataclass
class Settings:
    epochs: int = setting(200, "maximum number of epochs", type=number(int, at_least=1))
    device: str = device_setting()

settings = parse_settings(Settings, __doc__)
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def setting(default: Any, help: str, **options: Any) -> Any:
    """A dataclass field that is also a flag. `options` go to argparse (type, choices, nargs, metavar).

    A default of False makes a switch, and `dataclasses.MISSING` a positional argument.
    """
    return dataclasses.field(default=default, metadata={"help": help} | options)


def parse_settings(settings: type[T], description: str | None) -> T:
    """Parse the command line into an instance of the dataclass `settings`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(settings):
        options = dict(field.metadata)
        if field.default is dataclasses.MISSING:
            parser.add_argument(field.name, **options)
        elif field.default is False:
            parser.add_argument(f"--{field.name}", action="store_true", **options)
        else:
            if field.default is not None and "(default:" not in options["help"]:
                options["help"] += " (default: %(default)s)"
            parser.add_argument(f"--{field.name}", default=field.default, **options)
    return settings(**vars(parser.parse_args()))


def answer_early(settings: type, description: str | None) -> None:
    """Handle --help, wrong flags and Ctrl-C before a command imports torch, which takes seconds."""
    parse_settings(settings, description)

    def one_line(kind: type[BaseException], error: BaseException, trace: object) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
            os._exit(130)
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = one_line


def device_setting() -> Any:
    return setting("auto", "auto prefers CUDA, then Apple's GPU, then the CPU", choices=("auto", "cpu", "cuda", "mps"))


def dataset_setting() -> Any:
    return setting("dataset_pairs_wav", "folder made by create_dataset_pairs_wav.py", type=file_path)


def cache_setting() -> Any:
    return setting(None, "folder for cached embeddings (default: .embedding_cache in dataset_dir)", type=file_path)


WEIGHTS_HELP = "codec: pretrained, demo, untrained, or a file or folder of weights"


def weights_setting() -> Any:
    return setting("pretrained", WEIGHTS_HELP, type=file_path)


def checkpoint_weights_setting(default: str = "the checkpoint's") -> Any:
    return setting(None, f"{WEIGHTS_HELP} (default: {default})", type=file_path)


def checkpoint_setting() -> Any:
    return setting("checkpoints_simple/best_model.pt", "a trained model", type=file_path)


def seed_setting(of: str) -> Any:
    return setting(42, f"random seed for {of}", type=number(int, at_least=0, below=2**63))


def file_path(text: str) -> str:
    """argparse type: a path to a file or folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid path")
    return text


def number(
    kind: type[int] | type[float],
    at_least: float = -math.inf,
    at_most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Callable[[str], int | float]:
    """argparse type: a finite int or float within the limits."""
    limits = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    named = " and ".join(f"{name} {limit:.15g}" for name, limit in limits.items() if math.isfinite(limit))
    wanted = f"a {'whole' if kind is int else 'finite'} number {named}".rstrip()

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
            if at_least <= value <= at_most and above < value < below and math.isfinite(value):
                return value
        except (ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse
