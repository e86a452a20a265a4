"""Planted worlds through the real commands: what can be learned is learned, and nothing else "works"."""

import pytest

from benchmarks import study_planted
from benchmarks.study_planted import REQUIRED, study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_nine_tenths_of_the_skill_in_the_coin_world_are_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(study_planted, "TRACKS", {"train": 48, "val": 12})
    found = study("coin", 42, tmp_path, epochs=10, lr=2e-3, weights="demo")
    assert found["outcome"] == "works", found["sentence"]
    assert found["share"] >= REQUIRED["coin"], found
    assert found["loop"] < 0.1


def test_independent_clips_never_work(tmp_path, monkeypatch):
    monkeypatch.setattr(study_planted, "TRACKS", {"train": 12, "val": 10})
    found = study("independent", 42, tmp_path, epochs=4, lr=1e-3, weights="demo")
    assert found["outcome"] in ("not_distinguishable", "worse"), found["sentence"]
