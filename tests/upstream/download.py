"""Download transformers' own tests, which the installed package lacks.

Usage: python tests/upstream/download.py FOLDER

FOLDER/transformers_tests then holds the tests of the transformers that is installed.
"""

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

# What the tests import and the source distribution lacks; see `missing.py`.
MISSING = (
    "distributed_testing_utils",
    "exporters/test_export",
    "generation/test_utils",
    "utils/test_configuration_utils",
)


def download(folder: Path) -> Path:
    """Let pip fetch the source distribution, once; the path of the archive."""
    requirement = f"transformers=={version('transformers')}"
    archive = folder / f"transformers-{version('transformers')}.tar.gz"
    if not archive.exists():
        # pip reads the metadata by running the build tool, here that of the environment.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--no-binary", "transformers", "--dest", str(folder), requirement], check=True)
    return archive


def unpack(archive: Path, package: Path) -> None:
    """Write the tests of an archive as a package, with what they miss."""
    shutil.rmtree(package, ignore_errors=True)
    inside = archive.name.removesuffix(".tar.gz") + "/tests/"
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if member.isfile() and member.name.startswith(inside):
                member.name = member.name.removeprefix(inside)
                tar.extract(member, package, filter="data")
    (package / "__init__.py").touch()
    for name in MISSING:
        target = package / f"{name}.py"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copy(Path(__file__).with_name("missing.py"), target)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    unpack(download(folder), folder / "transformers_tests")
