"""Any byte changed, lost, added or zeroed in what a run keeps: noticed and named, mended or refused, never believed."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import checkpoint_of

import evaluate_continuation
from common.errors import UserError
from dataset.cache import metrics_line, read_metrics
from dataset_wav_pairs import PairEmbeddings, WavPairsDataset, prepare_cache
from model_simple_transformer import SimpleTransformer, load_checkpoint
from train_simple_worker import train_worker
from training.checkpoint import MetricsLog, TrainConfig, read_last, save_checkpoint


def damaged(whole: bytes, rng: np.random.Generator, positions: list[int]) -> list[tuple[str, bytes]]:
    """`whole` in every way in which a disk, a cut copy or an editor spoils a file; each differs from it."""
    found = []
    for position in positions:
        flipped = bytearray(whole)
        flipped[position] ^= int(rng.integers(1, 256))
        found.append((f"flipped at {position}", bytes(flipped)))
    for _ in range(6):
        start = int(rng.integers(len(whole)))
        length = int(rng.integers(1, 5000))
        zeroed = whole[:start] + bytes(len(whole[start : start + length])) + whole[start + length :]
        found.append((f"{length} zeroed at {start}", zeroed))
        found.append((f"{length} lost at {start}", whole[:start] + whole[start + length :]))
        found.append((f"ends at {start}", whole[:start]))
        found.append((f"{length} added at {start}", whole[:start] + rng.bytes(length) + whole[start:]))
    found += [("empty", b""), ("a byte added", whole + b"\0"), ("twice", whole + whole), ("a newline", whole + b"\n")]
    return [(how, content) for how, content in found if content != whole]


def some_positions(size: int, rng: np.random.Generator, count: int) -> list[int]:
    """Both ends, byte for byte, and `count` places between."""
    return [*range(min(64, size)), *range(max(0, size - 64), size), *map(int, rng.integers(0, size, count))]


# ------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.pt"
    save_checkpoint(path, checkpoint_of(SimpleTransformer(num_layers=1)))
    return path


def test_no_byte_of_a_checkpoint_can_change_without_a_word(checkpoint, tmp_path, rng):
    whole = checkpoint.read_bytes()
    load_checkpoint(checkpoint)
    pickled = range(whole.index(b"data.pkl"), whole.index(b"data.pkl") + 4000, 7)
    for how, content in damaged(whole, rng, [*some_positions(len(whole), rng, 200), *pickled]):
        (tmp_path / "best_model.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"best_model\.pt: damaged, or no checkpoint of this project"):
            load_checkpoint(tmp_path / "best_model.pt")
            print(how)


def test_torch_itself_reads_a_sealed_checkpoint(checkpoint):
    assert torch.load(checkpoint, weights_only=True)["format"] == "jingle_d 2"


def test_a_damaged_last_is_refused_and_the_latest_whole_one_offered(tmp_path, rng):
    """The one offered is the latest by its epoch, whatever the files' dates, and is itself whole."""
    model, config = SimpleTransformer(num_layers=1), TrainConfig(checkpoint_dir=str(tmp_path))
    assert read_last(config) is None
    for name, epoch in (("checkpoint_epoch_20", 20), ("checkpoint_epoch_10", 10), ("best_model", 17), ("last", 25)):
        save_checkpoint(tmp_path / f"{name}.pt", checkpoint_of(model, epoch=epoch))
    assert read_last(config)["epoch"] == 25

    def spoil(name: str) -> None:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(damaged(whole, rng, [int(rng.integers(len(whole)))])[0][1])

    for spoilt, offered in (("last", "checkpoint_epoch_20"), ("checkpoint_epoch_20", "best_model"),
                            ("best_model", "checkpoint_epoch_10")):  # fmt: skip
        spoil(f"{spoilt}.pt")
        with pytest.raises(UserError, match=rf"last\.pt: damaged.*; copy \S*/{offered}\.pt over it"):
            read_last(config)
    spoil("checkpoint_epoch_10.pt")
    with pytest.raises(UserError, match=r"last\.pt: damaged[^;]*; choose another --checkpoint_dir, or --resume never"):
        read_last(config)
    (tmp_path / "last.pt").unlink()
    with pytest.raises(UserError, match=r"last\.pt: missing; choose another"):
        read_last(config)


# ------------------------------------------------------------------ the cache


def test_damaged_cache_entries_are_named_and_made_again(small_dataset, tmp_path, codec, rng, capsys):
    shutil.copytree(small_dataset, tmp_path / "data", copy_function=shutil.copy)
    splits = [WavPairsDataset(tmp_path / "data" / split, codec) for split in ("train", "val")]
    folder = splits[0].cache.folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    expected = [PairEmbeddings(split, torch.device("cpu")).table for split in splits]
    spoilt = rng.choice(sorted(before), 5, replace=False)
    for name in spoilt:
        choices = damaged(before[name], rng, some_positions(len(before[name]), rng, 5))
        (folder / name).write_bytes(choices[rng.integers(len(choices))][1])
    capsys.readouterr()
    prepare_cache(splits)
    for split, table in zip(splits, expected, strict=True):
        assert torch.equal(PairEmbeddings(split, torch.device("cpu")).table, table)
    said = capsys.readouterr().err
    assert all(f"{name}: damaged; encoding this segment again" in said for name in spoilt)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_no_byte_of_a_cache_entry_can_change_without_a_word(small_dataset, tmp_path, codec, rng):
    cache = WavPairsDataset(small_dataset / "val", codec, tmp_path).cache
    cache.write("a", rng.standard_normal((128, 75)).astype(np.float32))
    whole = cache.path("a").read_bytes()
    assert cache.read("a") is not None
    for how, content in damaged(whole, rng, [*range(128), *some_positions(len(whole), rng, 100)]):
        cache.path("a").write_bytes(content)
        assert cache.read("a") is None, how
    cache.path("b").write_bytes(whole)
    assert cache.read("b") is None, "the entry of another segment"


# ------------------------------------------------------------------ metrics.jsonl


def epoch_line(epoch: int) -> dict:
    return {"epoch": epoch, "train_mse": 1 / epoch, "val_mse": 2 / epoch, "best": True, "lr": 1e-4}


def metrics_of(epochs: int) -> bytes:
    lines = [{"baselines": {"training_mean": 2.5, "repeat_input": 1.5}}, *map(epoch_line, range(1, epochs + 1))]
    return "".join(map(metrics_line, lines)).encode()


def test_damage_in_metrics_is_named_by_its_line(tmp_path, rng):
    path, whole = tmp_path / "metrics.jsonl", metrics_of(12)
    path.write_bytes(whole)
    good, wrong = read_metrics(path, 12)
    assert wrong == [] and [line.get("epoch", 0) for line in good] == list(range(13))
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= int(rng.integers(1, 256))
        path.write_bytes(flipped)
        lines, wrong = read_metrics(path, 12)
        assert wrong and all(line in good for line in lines), position
        if whole[position] != 10 and flipped[position] != 10:  # no line was joined or torn
            number = whole[:position].count(b"\n") + 1
            assert wrong == [f"{path}: line {number} is damaged and left out"] and len(lines) == 12
    for how, content in damaged(whole, rng, []):
        path.write_bytes(content)
        lines, wrong = read_metrics(path, 12)
        assert all(line in good for line in lines), how
        assert wrong or lines == good, how  # bytes after the last line are a torn line
    missing = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(missing[:4] + missing[6:]))
    assert read_metrics(path, 12)[1] == [f"{path}: lines are missing before line 5"]
    path.write_bytes(b"".join(missing[:-2]))
    assert read_metrics(path, 12)[1] == [f"{path}: lines are missing at its end, up to epoch 12"]


@pytest.mark.parametrize("torn", [b'{"epoch": 4, "trai', b"", b"\0" * 100])
def test_a_torn_last_line_is_dropped(tmp_path, capsys, torn):
    """What a killed writer leaves; the run goes on from the checkpoint's epoch."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(metrics_of(3) + torn)
    assert read_metrics(path, 3)[1] == []
    MetricsLog(tmp_path).begin({"training_mean": 2.5, "repeat_input": 1.5}, 3)
    assert path.read_bytes() == metrics_of(3) and capsys.readouterr().out == ""


def test_a_resumed_run_names_damaged_metrics_and_goes_on(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(metrics_of(5).replace(b'"epoch": 2', b'"epoch": 7'))
    MetricsLog(tmp_path).begin({"training_mean": 2.5, "repeat_input": 1.5}, 4)
    assert capsys.readouterr().out == f"{path}: line 3 is damaged and left out\n"
    assert [line.get("epoch", 0) for line in read_metrics(path, 0)[0]] == [0, 1, 3, 4]


# ------------------------------------------------------------------ a whole run on damaged state


def test_training_and_evaluation_on_damaged_state(small_dataset, tmp_path, rng, capsys, monkeypatch):
    """The cache mends itself, with the weights of the undisturbed run; evaluation says which line of metrics is bad."""
    # A cache of its own: the last bits of an embedding depend on how many threads made it.
    options = {
        "dataset_dir": str(small_dataset),
        "cache_dir": str(tmp_path / "cache"),
        "encodec_weights": "untrained",
        "device": "cpu",
        "num_layers": 1,
    }

    def train(name: str, epochs: int = 2) -> dict:
        train_worker(0, 1, TrainConfig(checkpoint_dir=str(tmp_path / name), epochs=epochs, **options))
        return torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]

    expected = train("undisturbed")
    cache = sorted((tmp_path / "cache/untrained-1").iterdir())
    for path in rng.choice(cache, 3, replace=False):
        path.write_bytes(path.read_bytes()[: int(rng.integers(38000))])
    found = train("disturbed")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert capsys.readouterr().err.count("damaged; encoding this segment again") == 3

    metrics = tmp_path / "disturbed/metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"epoch": 1,', b'"epoch": 2,'))
    paths = {"checkpoint": tmp_path / "disturbed/best_model.pt", "dataset_dir": small_dataset}
    paths |= {"output_dir": tmp_path / "out", "num_examples": 0, "max_sound_pairs": 1, "encodec_weights": "untrained"}
    monkeypatch.setattr(sys, "argv", ["x", *(f"--{name}={value}" for name, value in paths.items()), "--device=cpu"])
    assert evaluate_continuation.main() == 0
    notes = json.loads((tmp_path / "out/results.json").read_text())["notes"]
    assert f"{metrics}: line 2 is damaged and left out" in notes
    paths["checkpoint"].write_bytes(paths["checkpoint"].read_bytes()[:-1])
    with pytest.raises(UserError, match=r"best_model\.pt: damaged"):
        evaluate_continuation.main()
