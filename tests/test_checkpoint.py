"""Checkpoints are complete or refused, nothing in them is executed, and a run that lost one is offered another."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import checkpoint_of
from training_runs import difference

from common.errors import UserError
from model_simple_transformer import SimpleTransformer
from training.checkpoint import find_run, load_checkpoint, remove_run, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.pt"
    save_checkpoint([path], checkpoint_of(SimpleTransformer(num_layers=1)))
    return path


def test_no_damage_changes_a_loaded_value_unnoticed(checkpoint, tmp_path, rng):
    """Flipped bits, cut ends, zeroed and lost stretches: refused, or what is loaded is what was saved."""
    whole, expected = checkpoint.read_bytes(), load_checkpoint(checkpoint)
    directory = whole.index(b"PK\1\2")
    flips = [*rng.integers(0, len(whole), 150), *rng.integers(0, 4000, 100), *rng.integers(directory, len(whole), 50)]
    is_folder = bytearray(whole)
    is_folder[whole.rindex(b"PK\1\2", 0, whole.index(b"data/21", directory)) + 38] ^= 16  # torch would not read it
    damaged = [bytes(is_folder)]
    for position in flips:
        content = bytearray(whole)
        content[position] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(content))
    for _ in range(20):
        start, length = int(rng.integers(len(whole))), int(rng.integers(1, 5000))
        damaged += [whole[:start], whole[:start] + whole[start + length :]]
        damaged.append(whole[:start] + bytes(len(whole[start : start + length])) + whole[start + length :])
    refused = 0
    for content in damaged:
        (tmp_path / "a.pt").write_bytes(content)
        try:
            assert not difference(load_checkpoint(tmp_path / "a.pt"), expected)
        except UserError as error:
            assert "a.pt: damaged, or not a checkpoint" in str(error) or "earlier version" in str(error)
            refused += 1
    assert refused > len(damaged) * 0.8


class Payload:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, zipped):
    content = {"format": 4, "model": Payload(os.mkdir, str(tmp_path / "trace"))}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"a\.pt: damaged, or not a checkpoint of this project"):
        load_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "trace").exists()
    pickle.loads(pickle.dumps(content))
    assert (tmp_path / "trace").exists(), "the payload would have run"


def test_a_damaged_last_pt_is_refused_and_the_latest_intact_one_offered(tmp_path):
    """The offered checkpoint has the latest epoch, whatever the files' dates, and is itself intact."""
    model = SimpleTransformer(num_layers=1)
    assert find_run(tmp_path) is None
    for name, epoch in (("checkpoint_epoch_20", 20), ("checkpoint_epoch_10", 10), ("best_model", 17), ("last", 25)):
        save_checkpoint([tmp_path / f"{name}.pt"], checkpoint_of(model, epoch=epoch))
    assert find_run(tmp_path)["epoch"] == 25
    for damaged, offered in (
        ("last", "checkpoint_epoch_20"),
        ("checkpoint_epoch_20", "best_model"),
        ("best_model", "checkpoint_epoch_10"),
    ):
        path = tmp_path / f"{damaged}.pt"
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(UserError, match=rf"last\.pt: damaged.*; copy \S*/{offered}\.pt over it to resume"):
            find_run(tmp_path)
    (tmp_path / "checkpoint_epoch_10.pt").unlink()
    (tmp_path / "last.pt").unlink()
    with pytest.raises(UserError, match=r"last\.pt: missing; choose another --checkpoint_dir, or add --resume never"):
        find_run(tmp_path)


def test_only_this_projects_checkpoints_are_removed(tmp_path):
    save_checkpoint([tmp_path / "last.pt"], checkpoint_of(SimpleTransformer(num_layers=1)))
    (tmp_path / "best_model.pt").write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(UserError, match=r"best_model\.pt: damaged, or not"):
        remove_run(tmp_path)
    assert (tmp_path / "last.pt").exists()
    (tmp_path / "best_model.pt").unlink()
    remove_run(tmp_path)
    assert list(tmp_path.iterdir()) == []
