"""Every command line: --help, every flag, and one line for each wrong use."""

import argparse
import ast
import re

import pytest
from conftest import CODEC, ROOT, main_of, one_line, write_track

import test_simple_setup
from common.arguments import number

COMMANDS = ["create_dataset_pairs_wav.py", "dataset_wav_pairs.py", "train_simple_ddp.py", "test_simple_setup.py"]
COMMANDS += ["generate_continuation.py", "evaluate_continuation.py"]
# Every flag with its default, "" for none; the defaults are the original experiment's.
FLAGS = {
    "create_dataset_pairs_wav.py": """
        input_dir=music output_dir=dataset_pairs_wav segment_duration=16 max_pairs=2000 val_pairs=
        min_level_db=-60.0 sample_rate=24000 seed=42 num_workers= overwrite=""",
    "dataset_wav_pairs.py": "dataset_dir=dataset_pairs_wav cache_dir= encodec_weights=pretrained device=auto",
    "train_simple_ddp.py": """
        dataset_dir=dataset_pairs_wav checkpoint_dir=checkpoints_simple batch_size=16 epochs=200 lr=0.0001
        weight_decay=0.01 patience=20 scheduler_factor=0.5 scheduler_patience=5 max_grad_norm=1.0 checkpoint_every=10
        num_layers=4 num_heads=8 dropout=0.1 attention_dropout=0.0 num_processes= device=auto precision=auto resume=auto
        init_from= no_cache= cache_dir= encodec_weights=pretrained seed=42 check_only=""",
    "test_simple_setup.py": "encodec_weights=pretrained device=auto dataset_dir=",
    "generate_continuation.py": """
        checkpoint=checkpoints_simple/best_model.pt output_dir=continuations num_segments=1 quantize= device=auto
        encodec_weights=""",
    "evaluate_continuation.py": """
        checkpoint=checkpoints_simple/best_model.pt dataset_dir=dataset_pairs_wav output_dir=results_simple
        num_examples=8 max_sound_pairs=60 horizon_only= seed=42 cache_dir= device=auto encodec_weights=""",
}
NOT_A_NUMBER = ("x", "nan", "inf", "1e999", "0x10", "")
NONSENSE = {
    "create_dataset_pairs_wav.py": """
        segment_duration=x segment_duration=0 segment_duration=1.5 segment_duration=601 max_pairs=0 max_pairs=-1
        max_pairs=x val_pairs=-1 val_pairs=x val_pairs=2000 min_level_db=1 num_workers=0 input_dir=none input_dir=file
        output_dir=file/below""",
    "train_simple_ddp.py": """
        epochs=0 epochs=1.5 lr=nan lr=0 lr=-1 dropout=1 dropout=-0.1 attention_dropout=1 attention_dropout=-0.1
        scheduler_factor=0 scheduler_factor=1 num_heads=7 num_processes=0 device=gpu dataset_dir=none
        checkpoint_dir=file checkpoint_dir=file/below cache_dir=file encodec_weights=none seed=-1""",
    "dataset_wav_pairs.py": "dataset_dir=none cache_dir=file/below encodec_weights=file",
    "generate_continuation.py": """
        num_segments=0 checkpoint=none checkpoint=. checkpoint=file output_dir=file/below device=tpu""",
    "evaluate_continuation.py": "num_examples=-1 max_sound_pairs=0 checkpoint=none dataset_dir=none output_dir=file",
}


@pytest.mark.parametrize("script", COMMANDS)
def test_help_opens_with_commands_and_has_every_flag(script, capfd):
    assert main_of(script, "--help") == 0
    text = capfd.readouterr().out
    assert f"python {script}" in (ast.get_docstring(ast.parse((ROOT / script).read_text())) or "")
    for flag, default in (word.split("=") for word in FLAGS[script].split()):
        (entry,) = re.findall(rf"^  --{flag}\b.*?(?=^  --|\Z)", text, re.M | re.S)
        assert not default or re.search(rf"\(default:\s+{re.escape(default)}\)", entry), f"--{flag}: {entry}"
    assert set(re.findall(r"^  --(\w+)", text, re.M)) == {word.split("=")[0] for word in FLAGS[script].split()}


@pytest.fixture
def place(tmp_path, small_dataset, trained, monkeypatch):
    """A folder with music, a dataset, a checkpoint and a plain file."""
    write_track(tmp_path / "music" / "a.wav", 4, seed=1)
    (tmp_path / "file").write_text("hello")
    (tmp_path / "dataset_pairs_wav").symlink_to(small_dataset)
    (tmp_path / "checkpoints_simple").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", NONSENSE)
def test_wrong_values_give_one_line_before_any_work(script, place, capfd, monkeypatch):
    def no_long_work(*_, **__):
        raise AssertionError("long work began")

    for work in ("audio.frozen_encodec.FrozenEncodec.encode", "model_simple_transformer.SimpleTransformer.forward"):
        monkeypatch.setattr(work, no_long_work)
    before = sorted(place.iterdir())
    for word in NONSENSE[script].split():
        flag, value = word.split("=")
        args = ["music/a.wav"] if script.startswith("generate") else []
        args += [] if script.startswith("create") or flag == "encodec_weights" else CODEC[:2]
        status = main_of(script, *args, f"--{word}")
        stderr = capfd.readouterr().err
        if status == 2:  # argparse: usage, then the line
            stderr = stderr.splitlines()[-1]
        assert status in (1, 2), word
        assert value in one_line(stderr) or f"--{flag}" in stderr
    assert sorted(place.iterdir()) == before


def test_numbers_are_finite_and_within_their_limits():
    parse = number(float, above=0, at_most=10)
    assert parse("10") == 10.0 and parse("1e-3") == 0.001
    for text in (*NOT_A_NUMBER, "0", "10.1", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a finite number above 0 and at most 10"):
            parse(text)
    with pytest.raises(argparse.ArgumentTypeError, match=r"'9+' is not a whole number at least 1"):
        number(int, at_least=1, at_most=10**9)("9" * 30)


def test_check_only_prints_what_is_ready_and_the_folders(place, run):
    lines = run("train_simple_ddp.py", "--check_only", *CODEC).stdout.splitlines()
    assert lines == [
        "ready: 1 x cpu, dataset_pairs_wav",
        "checkpoints: checkpoints_simple",
        "embeddings: dataset_pairs_wav/.embedding_cache",
    ]


def test_a_missing_cuda_device_gives_one_line(place, fails, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch._C._cuda_getDriverVersion", lambda: 0, raising=False)
    fails("train_simple_ddp.py", "--device", "cuda", *CODEC[:2], says="--device cuda: torch sees no CUDA GPU here")


def test_the_setup_test_says_what_to_fix(place, run, monkeypatch):
    """Only the checks that fail here. The README's commands include a setup test that says ready."""
    checks = [test_simple_setup.check_encodec, test_simple_setup.check_context, test_simple_setup.check_dataset]
    monkeypatch.setattr(test_simple_setup, "CHECKS", checks)
    (place / "bad" / "train").mkdir(parents=True)
    args = ("--encodec_weights", place / "none.th", "--dataset_dir", place / "bad")
    lines = run("test_simple_setup.py", *args, status=1).stdout.splitlines()
    assert lines[-1].startswith("not ready: fix encodec, context, dataset")
