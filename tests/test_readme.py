"""The README's commands run, and its links and names exist."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, write_track

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line and not line.startswith("#")
]
# The README's commands take hours and need the pretrained weights, so these flags are added. None is removed.
ADDED = {
    "create_dataset_pairs_wav.py": "--num_workers 2 --segment_duration 4",
    "test_simple_setup.py": "--encodec_weights demo",
    "train_simple_ddp.py": "--encodec_weights demo --epochs 1 --device cpu",
    "generate_continuation.py": "--device cpu",
    "evaluate_continuation.py": "--device cpu --num_examples 1",
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """What a new user has: the files in git, and some music."""
    folder = tmp_path_factory.mktemp("clone")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for number in range(3):
        write_track(folder / "music" / f"{number}.wav", 9, seed=number)
    write_track(folder / "song.mp3", 6, seed=9)
    return folder


@pytest.mark.slow
def test_the_readmes_commands_run_in_their_order(clone):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = []
    for command in COMMANDS:
        words = shlex.split(command, comments=True)
        if words[0] == "python":
            line = f"{command.split('#')[0]} {ADDED.get(words[1], '')}"
            result = subprocess.run(line, shell=True, cwd=clone, env=environment, capture_output=True, text=True)
            assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
            ran.append(words[1])
        elif words[0] == "ls":
            listed = subprocess.run(command, shell=True, cwd=clone, capture_output=True, text=True, check=True).stdout
            assert "best_model.pt" in listed
        elif words[0] == "make":
            subprocess.run(["make", "-n", words[1]], cwd=clone, check=True, capture_output=True)
        elif words[0] == "sbatch":
            assert (clone / words[1]).is_file()
        elif words[0] == "tail":
            assert f"--output={words[2]}" in (clone / "run_train_simple.sh").read_text()
        elif words[0] not in ("git", "source", "pip"):
            pytest.fail(f"this test cannot try a command of the README: {command}")
    assert set(ADDED) <= set(ran)
    for part in ("context", "continuation", "joined"):
        assert (clone / "continuations" / f"song_{part}.wav").is_file()


def test_every_script_and_folder_is_explained():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.sh"), *ROOT.glob("*/__init__.py")]:
        name = f"{path.parent.name}/" if path.name == "__init__.py" else path.name
        assert name in README, f"the README does not say why there is a {name}"
    tree = README.partition("## The files")[2].split("```")[1]
    for folder in ("audio", "dataset", "training", "evaluation", "common"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.name == "__init__.py" or path.name in tree, path


def test_the_places_to_change_exist():
    rows = README.partition("## Where to change what")[2].partition("As a library")[0].splitlines()[4:]
    for row in filter(lambda row: row.startswith("|"), rows):
        names = re.findall(r"`([\w./]+)`", row)
        sources = [(ROOT / name).read_text() for name in names if name.endswith(".py")]
        assert sources, row
        for name in names:
            if not name.endswith(".py"):
                assert any(re.search(rf"\b(def|class) {name}\b", source) for source in sources), f"{name}: {row}"


def test_links_and_files_exist():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    for test in re.findall(r"`(tests/\w+\.py)`", (ROOT / "docs" / "robustness.md").read_text()):
        assert (ROOT / test).is_file(), test
