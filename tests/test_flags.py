"""Every flag of every script with values that make no sense: one line, status 1 or argparse's 2, before any long work.

The cases are made from the scripts' own parsers: a flag of a kind that is not known here fails the test.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest
from conftest import ROOT, checkpoint_of, one_line_error, write_track

import common.errors as common

NO_NUMBER = ("", "x", "nan", "inf", "-inf", "1e999", "0x10")
NONSENSE = {
    common.positive_int: (*NO_NUMBER, "-1", "0", "1.5", "9" * 30, "9" * 5000),
    common.whole_number: (*NO_NUMBER, "-1", "1.5", "9" * 30, "9" * 5000),
    common.positive_float: (*NO_NUMBER, "-1", "0", "-0.0"),
    common.non_negative_float: (*NO_NUMBER, "-1e-9"),
    common.finite_float: NO_NUMBER,
    common.fraction: (*NO_NUMBER, "-0.1", "1", "1e300"),
    common.positive_int_to.__qualname__: (*NO_NUMBER, "-1", "0", "1.5", "999999", "9" * 30),
    common.file_path: ("", "a\0b"),
}
# What a path flag names: a folder or file that must be there, or one that is to be made.
ROLES = {
    "a folder to read": ("input_dir", "dataset_dir", "results_dir"),
    "a folder to make": ("output_dir", "checkpoint_dir", "cache_dir"),
    "a file to read": ("inputs", "checkpoint", "encodec_weights"),
    "a file to make": ("output",),
}
WRONG_PATHS = {
    "a folder to read": ("missing", "file", "file/below", "n" * 300, "n" * 5000),
    "a folder to make": ("file", "file/below", "dangling/below", "n" * 300, "n" * 5000),
    "a file to read": ("missing", "folder", "file/below", "n" * 300, "n" * 5000),
    "a file to make": ("folder", "file/below", "n" * 300),
}
# A right command for each script, which one flag then spoils.
DATASET = ["--dataset_dir", "dataset", "--encodec_weights", "untrained"]
CPU = ["--device", "cpu"]
RIGHT = {
    "create_dataset_pairs_wav.py": ["--input_dir", "music", "--output_dir", "out", "--segment_duration", "1"],
    "dataset_wav_pairs.py": [*DATASET, *CPU],
    "evaluate_continuation.py": [*DATASET, *CPU, "--checkpoint", "a.pt", "--output_dir", "out"],
    "evaluation_report.py": ["results"],
    "frozen_encodec.py": [],
    "generate_continuation.py": ["a.wav", "--checkpoint", "a.pt", *DATASET[2:], *CPU, "--output_dir", "out"],
    "model_simple_transformer.py": [],
    "test_simple_setup.py": [],
    "train_simple_ddp.py": [*DATASET, *CPU, "--checkpoint_dir", "out"],
    "demo/make_music.py": ["--output_dir", "out"],
    "benchmarks/run_benchmarks.py": ["codec"],
    "benchmarks/study_ablations.py": DATASET,
    "tests/soak_kill.py": [],
}
# What is a number, and yet none for this flag.
MORE = [
    ("create_dataset_pairs_wav.py", "--val_pairs", "2000"),
    ("create_dataset_pairs_wav.py", "--sample_rate", "10"),
    ("create_dataset_pairs_wav.py", "--segment_duration", "601"),
    ("create_dataset_pairs_wav.py", "--min_level_db", "0.1"),
    ("train_simple_ddp.py", "--num_heads", "7"),
    ("train_simple_ddp.py", "--scheduler_factor", "0"),
    ("benchmarks/run_benchmarks.py", None, "nonsense"),
]


def load(script: str):
    """A script as a module, not run."""
    spec = importlib.util.spec_from_file_location(f"flags_{Path(script).stem}", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


MODULES = {script: load(script) for script in RIGHT}


def actions(script: str) -> list[argparse.Action]:
    """The flags of a script that take a value, from the parser that its main() makes."""

    seen = []

    def give(parser, *_):
        seen.append(parser)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_args", give)
        MODULES[script].main()
    return [action for action in seen[0]._actions if action.nargs != 0]


def cases(script: str) -> list[tuple[str | None, str]]:
    """(flag, or None for what stands without one, value)."""
    found = [(flag, value) for name, flag, value in MORE if name == script]
    for action in actions(script):
        flag, kind = next(iter(action.option_strings), None), action.type
        if action.choices:
            found += [(flag, value) for value in ("", "nonsense", "0")]
        elif kind is not None:
            kind = kind if kind in NONSENSE else kind.__qualname__.split(".<")[0]
            found += [(flag, value) for value in NONSENSE[kind]]
        assert flag in dict(found), f"{script} {flag}: there is no nonsense for it"
        if kind is common.file_path and script != "test_simple_setup.py":  # which tells each mistake in its own way
            role = next(role for role, names in ROLES.items() if action.dest in names)
            found += [(flag, value) for value in WRONG_PATHS[role]]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory, small_dataset):
    """A folder in which every right command would run."""
    from model_simple_transformer import SimpleTransformer
    from training.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("place")
    (folder / "dataset").symlink_to(small_dataset)
    (folder / "file").touch()
    (folder / "dangling").symlink_to("nowhere")
    for name in ("folder", "results"):
        (folder / name).mkdir()
    write_track(folder / "a.wav", 2, seed=1)
    write_track(folder / "music/a.wav", 4, seed=1)
    save_checkpoint(folder / "a.pt", checkpoint_of(SimpleTransformer(num_layers=1)))
    return folder


def no_long_work(*_, **__):
    raise AssertionError("long work began")


def test_every_script_is_here():
    scripts = [
        p for folder in ("", "demo", "benchmarks", "tests") for p in (ROOT / folder).glob("*.py") if p != Path(__file__)
    ]
    assert set(RIGHT) == {str(p.relative_to(ROOT)) for p in scripts if "argparse.ArgumentParser(" in p.read_text()}


@pytest.mark.parametrize("script", RIGHT)
def test_nonsense_is_one_line_before_any_work(script, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for name, owner in {
        "encode": "frozen_encodec.FrozenEncodec", "decode": "frozen_encodec.FrozenEncodec",
        "forward": "model_simple_transformer.SimpleTransformer", "open_audio": "track_staging",
    }.items():  # fmt: skip
        monkeypatch.setattr(f"{owner}.{name}", no_long_work)
    for name in ("open_audio", "make_track", "make_dataset"):
        monkeypatch.setattr(MODULES[script], name, no_long_work, raising=False)
    before = sorted(place.rglob("*"))
    for flag, value in cases(script):
        spoilt = [*RIGHT[script], f"{flag}={value}"] if flag else [value, *RIGHT[script][1:]]
        monkeypatch.setattr(sys, "argv", [script, *spoilt])
        with pytest.raises(SystemExit) as leaving:
            common.run_script(MODULES[script].main)
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if not line.startswith("***")]
        what = (flag, value[:40], said)
        assert leaving.value.code in (1, 2) and ": error: " in lines[-1], what
        assert len(lines) == 1 or leaving.value.code == 2, what
        assert sorted(place.rglob("*")) == before, what


def test_some_of_them_as_a_user_meets_them(place):
    one_line_error("train_simple_ddp.py", "--num_heads", 7, says="--num_heads 7: must divide", cwd=place)
    args = ("a.wav", "--checkpoint", "a.pt", "--output_dir", "file/below")
    one_line_error("generate_continuation.py", *args, says="file is no folder; name another", cwd=place)


def test_a_name_that_is_no_text_is_told_in_one_line(place, capsys, monkeypatch):
    """Newlines, terminal commands and bytes that are not UTF-8: escaped, whatever says it."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["x", "--input_dir", "a\nb\x1b[2J\udcff"])
    with pytest.raises(SystemExit):
        common.run_script(MODULES["create_dataset_pairs_wav.py"].main)
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(
        sys, "argv", ["x", *RIGHT["create_dataset_pairs_wav.py"][:3], "o\udcff", "--segment_duration=1"]
    )
    with pytest.raises(SystemExit) as leaving:
        common.run_script(MODULES["create_dataset_pairs_wav.py"].main)
    assert leaving.value.code == 0 and r"o\udcff: 2 (1 train, 1 val) pairs" in capsys.readouterr().out
