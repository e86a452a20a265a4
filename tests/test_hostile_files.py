"""Files made by a stranger: nothing in them is run, none fills the memory or leaves its folder, each is one line."""

import hashlib
import io
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, checkpoint_of, run_script, write_track

import evaluate_continuation
import generate_continuation
import train_simple_ddp
from audio import frozen_encodec
from audio.frozen_encodec import load_frozen_encodec
from common.errors import UserError
from common.errors import run_script as end_as_a_script
from dataset.cache import EmbeddingCache, metrics_line, read_metrics, seal
from dataset.pairs import PairRow, read_metadata, write_metadata
from evaluation import report as evaluation_report
from model_simple_transformer import CHECKPOINT_FORMAT, SimpleTransformer, load_checkpoint
from training.checkpoint import Progress, TrainConfig, read_last, restore_state, save_checkpoint


class Payload:
    """Runs when it is unpickled: `call(*args)`."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def saved(content: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def with_format(content: dict) -> dict:
    return {"format": CHECKPOINT_FORMAT, **checkpoint_of(SimpleTransformer(num_layers=1)), **content}


def repacked(content: bytes, compression: int, old: bytes = b"", new: bytes = b"") -> bytes:
    """The same archive, packed anew, `old` replaced in its pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(file, "w", compression) as after:
        for name in before.namelist():
            record = before.read(name)
            assert not name.endswith("data.pkl") or old in record
            after.writestr(name, record.replace(old, new) if name.endswith("data.pkl") and old else record)
    return file.getvalue()


def overlapping(content: bytes) -> bytes:
    """An archive whose records all lie on one another: what it promises is a thousand times what it holds."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for number in range(1000):
            entry = zipfile.ZipInfo(f"archive/data/{1000 + number}")
            entry.header_offset, entry.file_size = largest.header_offset, largest.file_size
            entry.compress_size, entry.CRC = largest.compress_size, largest.CRC
            archive.filelist.append(entry)
        archive._didModify = True
    return file.getvalue()


LEAVES_A_FILE = {
    "os.system": lambda: Payload(os.system, "touch pwned"),
    "open": lambda: Payload(open, "pwned", "w"),
    "Path.touch": lambda: Payload(Path.touch, Path("pwned")),
    "eval": lambda: Payload(eval, "open('pwned', 'w')"),
    "subprocess": lambda: Payload(subprocess.Popen, ["touch", "pwned"]),
}
FILLS_THE_MEMORY = {
    "bytearray": lambda: saved(with_format({"x": Payload(bytearray, 1 << 40)})),
    "tensor": lambda: saved(with_format({"x": Payload(torch.Tensor, 1 << 40)})),
    "compressed": lambda: repacked(saved(with_format({"x": torch.zeros(10_000_000)})), zipfile.ZIP_DEFLATED),
    "overlapping": lambda: overlapping(saved(with_format({"x": torch.zeros(1_000_000)}))),
    "layers": lambda: saved(with_format({"model_config": {"encoding_dim": 128, "num_layers": 10**9}})),
    "channels": lambda: saved(with_format({"model_config": {"encoding_dim": 1 << 20, "num_layers": 1}})),
    # A storage, and a tensor in it, that say they are larger than the record.
    "declared": lambda: repacked(
        saved(with_format({"x": torch.zeros(77)})), zipfile.ZIP_STORED, b"K\x4d", b"J\x00\x00\x00\x70"
    ),
}  # fmt: skip


@pytest.fixture
def end(tmp_path, monkeypatch, capsys):
    """Call a script's main in a folder of one's own; returns the line with which it ends, status 1."""
    monkeypatch.chdir(tmp_path)

    def call(main, *args: object) -> str:
        monkeypatch.setattr(sys, "argv", ["x.py", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            end_as_a_script(main)
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("***")]
        assert leaving.value.code == 1 and len(lines) == 1, lines
        return lines[0]

    return call


@pytest.fixture
def bounded_memory():
    """At most 1 GB more than there is: who takes more gets MemoryError."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# ------------------------------------------------------------------ checkpoints and weights


@pytest.mark.parametrize("payload", LEAVES_A_FILE)
@pytest.mark.parametrize("form", ["zip", "old torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(small_dataset, tmp_path, end, payload, form):
    """Its checksum is right: a stranger can compute it too."""
    content = with_format({"model": LEAVES_A_FILE[payload]()})
    body = pickle.dumps(content) if form == "pickle" else saved(content, _use_new_zipfile_serialization=form == "zip")
    Path("evil.pt").write_bytes(seal(body))
    Path("last.pt").write_bytes(seal(body))
    write_track(Path("a.wav"), 2, seed=1)
    codec = ("--encodec_weights", "untrained", "--device", "cpu")
    said = [
        end(generate_continuation.main, "a.wav", "--checkpoint", "evil.pt", *codec),
        end(evaluate_continuation.main, "--checkpoint", "evil.pt", "--dataset_dir", small_dataset, *codec),
        end(train_simple_ddp.main, "--checkpoint_dir", ".", "--dataset_dir", small_dataset, *codec),
    ]
    assert all(".pt: damaged, or no checkpoint of this project" in line for line in said)
    digits = hashlib.sha256(body).hexdigest()[:8]
    Path(f"encodec_24khz-{digits}.th").write_bytes(body)
    assert "not the weights" in end(frozen_encodec.main, "--encodec_weights", ".")
    assert not Path("pwned").exists()


def test_the_payloads_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for make in LEAVES_A_FILE.values():
        done = pickle.loads(pickle.dumps(make()))
        if hasattr(done, "wait"):
            done.wait()
        Path("pwned").unlink()


@pytest.mark.parametrize("bomb", FILLS_THE_MEMORY)
def test_a_checkpoint_takes_no_more_memory_than_its_file(tmp_path, bomb, bounded_memory):
    (tmp_path / "bomb.pt").write_bytes(seal(FILLS_THE_MEMORY[bomb]()))
    with pytest.raises(UserError, match=r"bomb\.pt: damaged, or no checkpoint") as refused:
        load_checkpoint(tmp_path / "bomb.pt")
    assert not isinstance(refused.value.__cause__, MemoryError), "it was tried"


@pytest.mark.parametrize(
    "wrong",
    [{"epoch": "<script>alert(1)</script>"}, {"epoch": None}, {"codec": 5}, {"sample_rate": 10**12},
     {"num_samples": -1}, {"num_samples": 10**12}, {"baselines": {"training_mean": "<b>", "repeat_input": 1.0}},
     {"baselines": {}},
     {"model": {}}, {"model": [1]}, {"model_config": {}}, {"model_config": {"encoding_dim": 128, "num_heads": 0}},
     {"model_config": {"encoding_dim": 128, "num_layers": 1, "evil": 1}}, {"identity": 1}, {"format": "jingle_d 1"}],
    ids=str,
)  # fmt: skip
def test_what_a_checkpoint_holds_is_what_a_training_saves(tmp_path, wrong):
    (tmp_path / "a.pt").write_bytes(seal(saved(with_format({}))))
    load_checkpoint(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(seal(saved(with_format(wrong))))
    with pytest.raises(UserError, match=r"a\.pt: damaged, or no checkpoint of this project"):
        load_checkpoint(tmp_path / "a.pt")
    (tmp_path / "last.pt").write_bytes(seal(saved([1, 2])))
    with pytest.raises(UserError, match=r"last\.pt: damaged, or no checkpoint of this project"):
        read_last(TrainConfig(checkpoint_dir=str(tmp_path)))


def test_a_crafted_optimizer_state_cannot_write_elsewhere(tmp_path):
    """torch's fused AdamW writes as far as the parameter reaches, into whatever it is given."""

    def parts():
        model = SimpleTransformer(num_layers=1)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        return model, optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)

    model, optimizer, scheduler = parts()
    model(torch.randn(1, 128, 4)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    content |= {"progress": vars(Progress())}
    for small in (torch.zeros(1), torch.zeros(1, 1, 1).expand(1, 1, 1), torch.zeros(0)):
        for state in content["optimizer"]["state"].values():
            state["exp_avg"] = small
        model, optimizer, scheduler = parts()
        try:
            restore_state(content, tmp_path / "last.pt", model, optimizer, scheduler)
        except UserError as refused:
            assert "last.pt: not what this training saves" in str(refused)
            continue
        for parameter, state in optimizer.state.items():
            assert state["exp_avg"].shape == parameter.shape and state["exp_avg"].is_contiguous()
    for wrong in ({"optimizer": {}}, {"progress": {"epoch": "2"}}, {"progress": {"evil": 1}}, {"model": {}}):
        with pytest.raises(UserError, match=r"last\.pt: not what this training saves"):
            restore_state({**content, **wrong}, tmp_path / "last.pt", *parts())


def test_weights_are_checked_against_their_name_before_they_are_read(tmp_path, monkeypatch):
    """Of a file that is not what its name says not a byte is interpreted."""
    monkeypatch.setattr(frozen_encodec, "load_tensors", lambda *_: pytest.fail("it was read"))
    (tmp_path / "encodec_24khz-d7cc33bc.th").write_bytes(saved({"a": Payload(os.system, "touch pwned")}))
    with pytest.raises(UserError, match="damaged or not what its name says"):
        load_frozen_encodec(str(tmp_path))


@pytest.mark.parametrize("bomb", ["bytearray", "compressed", "overlapping"])
def test_weights_take_no_more_memory_than_their_file(tmp_path, bomb, bounded_memory):
    body = FILLS_THE_MEMORY[bomb]()
    (tmp_path / f"encodec_24khz-{hashlib.sha256(body).hexdigest()[:8]}.th").write_bytes(body)
    with pytest.raises(UserError, match="not the weights of the 24 kHz EnCodec") as refused:
        load_frozen_encodec(str(tmp_path))
    assert isinstance(refused.value.__cause__, ValueError)


# ------------------------------------------------------------------ the cache


def test_a_crafted_cache_entry_is_no_more_than_missing(tmp_path, bounded_memory):
    """Pickled objects, giant or other shapes, other types, numbers that are not finite: with a right checksum."""
    cache = EmbeddingCache(tmp_path, (128, 75))
    header = io.BytesIO()
    giant = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 20)}
    np.lib.format.write_array_header_1_0(header, giant)
    bodies = {"giant": header.getvalue() + bytes(1000), "no npy": b"hello" * 8000}
    infinite = np.zeros((128, 75), np.float32)
    infinite[5, 7] = -np.inf
    for name, array in {
        "objects": np.array([Payload(os.system, f"touch {tmp_path}/pwned")], object), "other": np.zeros((75, 128)),
        "turned": np.zeros((75, 128), np.float32), "double": np.zeros((128, 75)), "infinite": infinite,
        "fortran": np.zeros((128, 75), np.float32, "F"),
    }.items():  # fmt: skip
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        bodies[name] = file.getvalue()
    for name, body in bodies.items():
        cache.path(name).write_bytes(body + zlib.crc32(body, zlib.crc32(name.encode())).to_bytes(4, "little"))
        assert cache.read(name) is None, name
    cache.write("good", np.zeros((128, 75)))
    assert cache.read("good") is not None and not (tmp_path / "pwned").exists()


# ------------------------------------------------------------------ metadata.txt, metrics.jsonl, results.json


@pytest.mark.parametrize(
    "row",
    [("../../etc/passwd", "train"), ("pair_0000", "../../etc"), ("pair_0000", "/etc"), ("/etc/passwd", "val"),
     ("pair_0000/../../x", "val"), ("pair_0000", "test"), ("pair_\u0660\u0660\u0660\u0660", "val"), ("", "train")],
)  # fmt: skip
def test_a_pair_cannot_name_a_path_outside_the_dataset(tmp_path, end, row):
    """Neither its file is looked at, nor is anything removed or written."""
    victim = write_track(tmp_path / "etc" / "passwd_input.wav", 1, seed=0)
    rows = [PairRow("pair_0000", "train", "a.wav", 0), PairRow(*row, "song.wav", 0)]
    write_metadata(tmp_path / "metadata.txt", {"a": "b"}, {}, [], rows)
    with pytest.raises(UserError, match=r"metadata\.txt: is damaged"):
        read_metadata(tmp_path / "metadata.txt")
    (tmp_path / "music").mkdir()
    write_track(tmp_path / "music/a.wav", 3, seed=0)
    from create_dataset_pairs_wav import main

    args = ("--input_dir", "music", "--output_dir", ".", "--segment_duration", 1)
    assert "metadata.txt: is damaged" in end(main, *args)
    assert victim.exists() and not (tmp_path / "train").exists()


def test_crafted_metrics_are_named(tmp_path):
    bad = [{"epoch": "<b>"}, {"epoch": 1}, {"epoch": 1, "train_mse": "1", "val_mse": 1}, {"epoch": [1]},
           {"epoch": 1, "train_mse": float("nan"), "val_mse": 1}, {"epoch": 10**400, "train_mse": 1, "val_mse": 1},
           {"epoch": 1, "train_mse": 1, "val_mse": float("inf")}, {}]  # fmt: skip
    (tmp_path / "m").write_text("".join(map(metrics_line, bad)) + "[1]\n" + "[" * 100_000 + "\n\n")
    lines, wrong = read_metrics(tmp_path / "m", 0)
    assert lines == [] and len(wrong) == len(bad) + 3


HOSTILE = ['"; touch x; "', "$(touch x)", "`touch x`", "<script>alert(1)", "a\nb", "'; touch x #", "-rf",
           "a..", "&amp;<img src=x onerror=alert(1)>", "\x1b]0;x\x07", "| touch x", "%s{0}"]  # fmt: skip


def every_text(value: object, text: str) -> object:
    """`value` with each text in it, at any depth, replaced."""
    if isinstance(value, dict):
        return {key: every_text(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [every_text(item, text) for item in value]
    return text if isinstance(value, str) else value


@pytest.fixture(scope="module")
def results() -> dict:
    """The content of a results.json as evaluate_continuation.py writes it, every number 1."""
    row = {"label": "x", "note": "x"} | {key: 1.0 for key, *_ in evaluation_report.COLUMNS} | {"fad_inf_r2": 1.0}
    clip = {"wav": "x", "png": "x", "seconds": 1.0}
    names = ("context", "truth", "model", "ceiling", "joined")
    rows = ("model", "model_quantized", "repeat_input", "input_mean", "training_mean", "other_track", "ceiling")
    return {
        "verdict": {"outcome": "x", "alive": True, "sentence": "x", "rule": "x"},
        "checkpoint": {"path": "x", "epoch": 1, "codec": "x", "codec_is_pretrained": True},
        "rows": {name: dict(row) for name in rows}, "per_second": {"model": {"skill": [1.0]}},
        "tracks": [{"source": "x", "pairs": 1, "mse": 1.0, "skill": 1.0}],
        "dataset": {"path": "x", "pairs": 1, "tracks": 1, "segment_s": 1.0, "sample_rate": 24000, "sound_pairs": 1},
        "settings": {"seed": 1}, "notes": ["x"], "files": [], "training": {"epochs": [{"epoch": 1}]},
        "examples": [{"pair": "x", "source": "x", "start_s": 1, "skill": 1.0, "files": dict.fromkeys(names, clip)}],
    }  # fmt: skip


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "javascript:alert(1)"])
def test_no_text_in_the_results_reaches_the_page_unescaped(tmp_path, results, text):
    evaluation_report.write_report(tmp_path / "plain.html", every_text(results, "harmless"))
    evaluation_report.write_report(tmp_path / "evil.html", every_text(results, text))
    plain, evil = ((tmp_path / f"{name}.html").read_text() for name in ("plain", "evil"))
    assert all(evil.count(mark) == plain.count(mark) for mark in '<>"')
    assert not any("javascript:" in link for link in re.findall(r'(?:src|href|srcset)="([^"]*)', evil))


def test_results_of_another_form_are_one_line(tmp_path, results, end):
    for wrong in ({**results, "rows": 1}, [], {**results, "examples": [{}]}, {**results, "tracks": [{"skill": "x"}]}):
        (tmp_path / "results.json").write_text(json.dumps(wrong))
        assert "results.json: damaged" in end(evaluation_report.main, ".")


# ------------------------------------------------------------------ names


def test_names_of_tracks_reach_no_shell_and_no_other_folder(tmp_path):
    """From the music folder through metadata.txt, and through the continuation's file names."""
    for number, name in enumerate(HOSTILE):
        write_track(tmp_path / "music/x.wav", 2.2, seed=number).rename(tmp_path / "music" / f"{name}.wav")
    before = set(tmp_path.iterdir())
    run_script("create_dataset_pairs_wav.py", "--input_dir", "music", "--output_dir", "ds", "--segment_duration", 1,
               "--num_workers", 1, cwd=tmp_path)  # fmt: skip
    assert len(read_metadata(tmp_path / "ds/metadata.txt").pairs) == len(HOSTILE)
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(SimpleTransformer(num_layers=1)))
    some = HOSTILE[:2] + HOSTILE[4:6]
    tracks = [f"music/{name}.wav" for name in some]
    run_script("generate_continuation.py", *tracks, "--checkpoint", "a.pt", "--output_dir", "out", "--device", "cpu",
               "--encodec_weights", "untrained", cwd=tmp_path)  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in before} | {"ds", "a.pt", "out"}
    assert len(list((tmp_path / "out").glob("*.wav"))) == 3 * len(some)


@pytest.mark.parametrize("script", ["create_dataset_pairs_levante.sh", "run_train_simple.sh"])
def test_names_in_job_scripts_reach_no_shell(tmp_path, script):
    """The real scripts in a folder with such a name, with such arguments; python, srun and squeue write down theirs."""
    folder, tools, said = tmp_path / HOSTILE[0] / HOSTILE[1], tmp_path / "tools", tmp_path / "said"
    (folder / "logs").mkdir(parents=True)
    for name in ("create_dataset_pairs_wav.py", "train_simple_ddp.py"):
        (folder / name).touch()
    tools.mkdir()
    record = f'#!/bin/bash\nprintf \'%s\\0\' "${{0##*/}}" "$@" >>{said}\n'
    (tools / "python").write_text(record)
    (tools / "squeue").write_text("#!/bin/bash\n")
    # As the real one: its own options aside, the rest is the command of the task.
    (tools / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "SLURM_SUBMIT_DIR": str(folder)}
    environment |= {"SLURM_JOB_NODELIST": "$(touch x)", "SLURM_GPUS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "1"}
    environment |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
    arguments = ["--input_dir", *HOSTILE]
    done = subprocess.run(["bash", ROOT / script, *arguments], env=environment, capture_output=True, cwd=tmp_path,
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = said.read_text().split("\0")
    last = len(calls) - 1 - len(arguments)
    assert calls[last:-1] == arguments
    assert not list(tmp_path.rglob("x")), "a name was run"


# ------------------------------------------------------------------ numbers


def test_a_model_that_predicts_no_numbers_makes_no_sound(tmp_path, end):
    model = SimpleTransformer(num_layers=1)
    torch.nn.init.constant_(model.head[2].bias, torch.nan)
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(model))
    write_track(tmp_path / "a.wav", 2, seed=1)
    args = ("a.wav", "--checkpoint", "a.pt", "--encodec_weights", "untrained", "--device", "cpu", "--output_dir", "out")
    assert "a.pt: its continuation of a.wav is not finite" in end(generate_continuation.main, *args)
    assert list((tmp_path / "out").iterdir()) == []
