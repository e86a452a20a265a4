"""Download 14 hours of freely licensed recordings from Debian's or Ubuntu's package archive: `make music`.

    python demo/get_music.py --output_dir music        # about 670 MB; installs nothing and needs no root

Writes music/PACKAGE/*.ogg (some packages have MP3 or Opus) with each package's copyright file, and music/SOURCES.txt.
Packages that are already complete are not downloaded again. You can put your own music into music/ instead.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import astuple, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from audio.reading import AudioError, open_audio
from common.arguments import file_path, parse_settings, setting
from common.errors import UserError, run_script
from common.files import atomic_write, check_output_folder, lock_folder
from common.progress import Progress
from dataset.sources import AUDIO_EXTENSIONS

# Patterns of package names. If several match (wesnoth-1.16-music, wesnoth-1.18-music), the newest is used.
PACKAGES = (
    r"wesnoth-[\d.]+-music",
    "warzone2100-music",
    "ufoai-music",
    "nexuiz-music",
    "singularity-music",
    "drascula-music",
    "hyperrogue-music",
    "asc-music",
)
SOURCES, WORK = "SOURCES.txt", ".fetching"
OWN_MUSIC = "or put your own music into"


@dataclass
class Settings:
    output_dir: str = setting("music", "folder for the music", type=file_path)


@dataclass(frozen=True)
class Package:
    """A package in the archive's lists."""

    name: str
    version: str
    num_bytes: int  # download size


@dataclass(frozen=True)
class Source:
    """A row of SOURCES.txt: a package whose music is complete, in a folder with its name."""

    package: str
    version: str
    files: str
    hours: str
    license_file: str


def find_packages(remedy: str) -> tuple[list[Package], list[str]]:
    """The packages in this machine's package lists, and the patterns that match none.

    Raises UserError if this machine has no apt or no package lists.
    """
    for program in ("apt-cache", "apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise UserError(f"{program}: not on this machine; run this on Debian or Ubuntu, {remedy}")
    names = _output("apt-cache", "pkgnames").split()
    if not names:
        raise UserError(f"apt: no package lists on this machine; run apt-get update as root first, {remedy}")
    found, missing = [], []
    for pattern in PACKAGES:
        matches = sorted((name for name in names if re.fullmatch(pattern, name)), key=_version_numbers)
        # apt-cache also lists names that other packages only mention; these have no version.
        candidates = [package for name in matches if (package := _look_up(name))]
        if candidates:
            found.append(candidates[-1])
        else:
            missing.append(pattern)
    return found, missing


def _look_up(name: str) -> Package | None:
    described = _output("apt-cache", "show", "--no-all-versions", name)
    values = dict(line.split(": ", 1) for line in described.splitlines() if re.match(r"(Version|Size): ", line))
    return Package(name, values["Version"], int(values["Size"])) if len(values) == 2 else None


def _version_numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def fetch(package: Package, music: Path, remedy: str) -> Source:
    """Download and unpack a package. Its folder in `music` appears complete or not at all."""
    work = music / WORK
    shutil.rmtree(work, ignore_errors=True)
    unpacked, staged, folder = work / "unpacked", work / "staged", music / package.name
    unpacked.mkdir(parents=True)
    staged.mkdir()
    _run(["apt-get", "download", package.name], work, f"{package.name}: could not be downloaded", remedy)
    deb = next(work.glob("*.deb"))
    _run(["dpkg-deb", "-x", str(deb.absolute()), "unpacked"], work, f"{package.name}: could not be unpacked", remedy)
    deb.unlink()
    for archive in sorted(unpacked.rglob("*.pk3")):
        with zipfile.ZipFile(archive) as content:
            content.extractall(archive.with_suffix(""))
        archive.unlink()
    hours = 0.0
    for path in sorted(unpacked.rglob("*")):
        if path.suffix.lower() not in AUDIO_EXTENSIONS or not path.is_file() or path.is_symlink():
            continue
        target = staged / path.name
        if target.exists():  # two of the package's folders have this name
            target = staged / f"{path.parent.name}_{path.name}"
        path.rename(target)
        hours += _duration_s(target) / 3600
    files = len(list(staged.iterdir()))
    shutil.copyfile(unpacked / "usr/share/doc" / package.name / "copyright", staged / "copyright")
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)
    return Source(package.name, package.version, str(files), f"{hours:.2f}", f"{package.name}/copyright")


def _duration_s(path: Path) -> float:
    try:
        with open_audio(path) as audio:
            return audio.duration_s
    except AudioError:
        return 0.0


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _run(command: list[str], folder: Path, failure: str, remedy: str) -> None:
    """Run a command in `folder`. If it fails, raises UserError with its first error."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
        errors = [line for line in lines if line.startswith("E: ")] or lines[-1:]
        raise UserError(f"{failure} ({errors[0].removeprefix('E: ')}); run it again, {remedy}")


def read_sources(music: Path) -> list[Source]:
    """The packages that are complete in `music`."""
    path = music / SOURCES
    rows = path.read_text().splitlines()[1:] if path.exists() else []
    sources = [Source(*row.split("\t")) for row in rows if row.count("\t") == len(fields(Source)) - 1]
    return [source for source in sources if (music / source.package).is_dir()]


def write_sources(music: Path, sources: list[Source]) -> None:
    header = "\t".join(field.name for field in fields(Source))
    rows = [header, *("\t".join(astuple(source)) for source in sources)]
    atomic_write(music / SOURCES, "\n".join(rows) + "\n")


def main() -> int:
    settings = parse_settings(Settings, __doc__)
    music = Path(settings.output_dir)
    remedy = f"{OWN_MUSIC} {music}/"
    check_output_folder("--output_dir", music)
    packages, missing = find_packages(remedy)
    for pattern in missing:
        print(f"no package in this release matches {pattern}; continuing without it", file=sys.stderr)
    music.mkdir(parents=True, exist_ok=True)
    with lock_folder(music, "a download of music"):
        sources = read_sources(music)
        wanted = [package for package in packages if package.name not in {source.package for source in sources}]
        needed = sum(package.num_bytes for package in wanted)
        free = shutil.disk_usage(music).free
        if 2 * needed > free:
            raise UserError(
                f"--output_dir {music}: {free / 1e6:.0f} MB free, {2 * needed / 1e6:.0f} MB needed while unpacking; "
                f"free some space, {remedy}"
            )
        if wanted:
            print(f"downloading {needed / 1e6:.0f} MB to {music}/, packages: {len(wanted)}", flush=True)
        progress = Progress()
        for package in progress.over(wanted, len(wanted), "packages fetched"):
            progress.print(f"{package.name} {package.version}, {package.num_bytes / 1e6:.0f} MB")
            sources.append(fetch(package, music, remedy))
            write_sources(music, sources)
        shutil.rmtree(music / WORK, ignore_errors=True)
    hours = sum(float(source.hours) for source in sources)
    print(f"{music}: {sum(int(source.files) for source in sources)} files, {hours:.1f} h, listed in {music / SOURCES}")
    return 0


if __name__ == "__main__":
    run_script(main)
