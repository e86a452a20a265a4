"""demo/get_music.py with the real apt, on a small local package archive."""

import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import one_line, run_script

SCRIPT = "demo/get_music.py"
pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("apt-get", "apt-cache", "dpkg-deb")), reason="needs apt and dpkg"
)


class Archive:
    """A package archive on this disk, and an apt configured to use only that."""

    def __init__(self, folder: Path):
        self.folder, self.packages = folder, []
        for name in ("repo", "lists/partial", "cache/archives/partial", "parts"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(f"deb [trusted=yes] file:{folder}/repo ./\n")
        options = {
            "Dir::State::lists": folder / "lists", "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": folder / "sources.list", "Dir::Etc::sourceparts": folder / "parts",
            "Dir::State::status": folder / "status",
            "APT::Sandbox::User": "root", "Acquire::Languages": "none",
        }  # fmt: skip
        (folder / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in options.items()))
        self.env = {"APT_CONFIG": str(folder / "apt.conf")}

    def add(self, name: str, version: str, sounds: list[str], in_pk3: bool = False) -> None:
        """Add a package that has one second of sound under each name, in a zip if `in_pk3`."""
        root = self.folder / name
        for number, sound in enumerate(sounds):
            path = root / "usr/share/games" / sound
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * np.random.default_rng(number).normal(size=36_000), 36_000)
        if in_pk3:
            with zipfile.ZipFile(root / "usr/share/games/0music.pk3", "w") as pk3:
                for sound in sounds:
                    pk3.write(root / "usr/share/games" / sound, f"music/{sound}")
                    (root / "usr/share/games" / sound).unlink()
        copyright_file = root / "usr/share/doc" / name / "copyright"
        copyright_file.parent.mkdir(parents=True)
        copyright_file.write_text("License: CC-BY-3.0")
        (root / "DEBIAN").mkdir()
        control = (
            f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@localhost>\nDescription: x\n"
        )
        (root / "DEBIAN/control").write_text(control)
        deb = self.folder / "repo" / f"{name}.deb"
        subprocess.run(["dpkg-deb", "-b", root, deb], check=True, capture_output=True)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        self.packages.append(f"{control}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")

    def update(self) -> None:
        (self.folder / "repo/Packages").write_text("\n".join(self.packages))
        subprocess.run(["apt-get", "update"], env=os.environ | self.env, check=True, capture_output=True)


@pytest.fixture
def archive(tmp_path):
    archive = Archive(tmp_path / "archive")
    archive.add("wesnoth-1.16-music", "1:1.16.9-1", ["old.ogg"])
    archive.add("wesnoth-1.18-music", "1:1.18.2-1", ["loyalists.ogg", "a/knolls.ogg", "b/knolls.ogg"])
    archive.add("ufoai-music", "2.5-2", ["geoscape.ogg"], in_pk3=True)
    archive.update()
    return archive


def names(music: Path) -> set[str]:
    return {str(path.relative_to(music)) for path in music.rglob("*") if path.is_file() and path.name != ".lock"}


EXPECTED = {
    "SOURCES.txt", "ufoai-music/copyright", "ufoai-music/geoscape.ogg", "wesnoth-1.18-music/copyright",
    "wesnoth-1.18-music/b_knolls.ogg", "wesnoth-1.18-music/knolls.ogg", "wesnoth-1.18-music/loyalists.ogg",
}  # fmt: skip


def test_available_packages_are_fetched_once_and_a_killed_run_resumes(tmp_path, archive):
    music = tmp_path / "music"
    done = run_script(SCRIPT, "--output_dir", music, **archive.env)
    assert done.stdout.startswith(f"downloading 0 MB to {music}/, packages: 2\n") and names(music) == EXPECTED
    assert "no package in this release matches asc-music; continuing without it" in done.stderr
    lines = (music / "SOURCES.txt").read_text().splitlines()
    assert lines[0].split("\t") == ["package", "version", "files", "hours", "license_file"]
    assert lines[1].split("\t") == ["wesnoth-1.18-music", "1:1.18.2-1", "3", "0.00", "wesnoth-1.18-music/copyright"]
    before = {path: path.stat().st_mtime_ns for path in music.rglob("*.ogg")}
    again = run_script(SCRIPT, "--output_dir", music, **archive.env)
    assert "downloading" not in again.stdout and "4 files, 0.0 h" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in music.rglob("*.ogg")}

    # As if killed with one package fetched, another half unpacked, and a renamed folder not yet listed.
    (music / "SOURCES.txt").write_text("\n".join(lines[:2]) + "\n")
    (music / "ufoai-music/geoscape.ogg").unlink()
    (music / ".fetching/unpacked").mkdir(parents=True)
    (music / ".fetching/ufoai-music.deb").write_text("half")
    done = run_script(SCRIPT, "--output_dir", music, **archive.env)
    assert "packages: 1\n" in done.stdout and names(music) == EXPECTED
    kept = music / "wesnoth-1.18-music/loyalists.ogg"
    assert kept.stat().st_mtime_ns == before[kept]
    assert (music / "SOURCES.txt").read_text().splitlines() == lines


def test_what_is_missing_gives_one_line_with_the_remedy(tmp_path, archive):
    def last_line(**env: str) -> str:
        done = run_script(SCRIPT, "--output_dir", tmp_path / "music", status=1, **env)
        return one_line(done.stderr.splitlines()[-1], "or put your own music into ")

    for deb in (archive.folder / "repo").glob("*.deb"):
        deb.unlink()  # as without a network: the package is listed but not available
    assert "wesnoth-1.18-music: could not be downloaded (" in last_line(**archive.env)
    assert "run apt-get update as root first" in last_line(**Archive(tmp_path / "not updated").env)
    assert "apt-cache: not on this machine" in last_line(PATH="")
