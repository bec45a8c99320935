"""``setup.sh`` on machines that are not this one: what it finds, what it tries next, what it asks a person to do."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "cat", "grep", "sed", "mktemp", "rm", "env", "ls", "mkdir", "cp", "chmod")

STUB_PYTHON = """#!/usr/bin/env bash
# A Python whose pip finds the CPU build of torch in {index} alone.
echo "$@" >>{calls}
[ "${{6:-}}" != --constraint ] || cat "$7" >>{calls}.pins
case "$*" in
  --version) echo "Python 3.12.9" ;;
  *{lacks}*) exit 1 ;;
  {found}) ;;
  *"+cpu"*) echo "ERROR: No matching distribution found for torch" >&2; exit 1 ;;
esac
"""

STUB_VENV = """#!/usr/bin/env bash
# A Python that can make a virtual environment of itself: -m venv FOLDER
echo "$@" >>{calls}
if [ "$2" = venv ]; then
  mkdir -p "$3/bin"
  cp "$0" "$3/bin/python"
fi
"""

STUB_INTERRUPTED = """#!/usr/bin/env bash
# A Python that is at work until Ctrl-C, of which it makes an exit code, as pip does.
trap 'echo "ERROR: Operation cancelled by user" >&2; exit 1' INT
echo "$@" >>{calls}
case "$*" in
  --version) echo "Python 3.12.9" ;;
  *" install "*) while :; do sleep 0.05; done ;;
esac
"""

STUB_UV = """#!/usr/bin/env bash
# uv venv ... FOLDER
echo "uv $@" >>{calls}
for folder; do :; done
mkdir -p "$folder/bin"
cp {python} "$folder/bin/python"
"""


STUB_UV_AT_WORK = """#!/usr/bin/env bash
# uv venv ... FOLDER, until Ctrl-C
for folder; do :; done
mkdir -p "$folder/bin"
echo "uv $@" >>{calls}
while :; do sleep 0.05; done
"""

# Tests in a shell's background ignore Ctrl-C, and so does what they start. (A preexec_fn would fork this process, whose
# JAX warns of that.)
HEARS_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Machine:
    """A PATH that holds a shell, a few tools, and what a test adds."""

    def __init__(self, folder: Path):
        self.bin, self.calls, self.venv = folder / "bin", folder / "calls", folder / "venv"
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.add("g++", "#!/usr/bin/env bash\n")

    def add(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def add_uv(self, found: str, index: str, lacks: str = "nothing") -> None:
        stub = STUB_PYTHON.format(calls=self.calls, found=found, index=index, lacks=lacks)
        python = self.add("stub-python", stub)
        self.add("uv", STUB_UV.format(calls=self.calls, python=python))

    def setup(self, extras: str = "train,serve-cpu", **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / "bash"), "setup.sh", str(self.venv), extras]
        return subprocess.run(
            command, cwd=ROOT, env={"PATH": str(self.bin)} | environment, capture_output=True, text=True
        )


def interrupted(machine: Machine, at: str) -> subprocess.CompletedProcess[str]:
    """Ctrl-C at the call that ``at`` is a part of. As from a terminal, all that runs is told."""
    (machine.bin / "sleep").symlink_to(shutil.which("sleep") or "")
    temporary = machine.bin.parent / "temporary"
    temporary.mkdir()
    command = [str(machine.bin / "bash"), "setup.sh", str(machine.venv), "train,serve-cpu"]
    with subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *command],
        cwd=ROOT,
        env={"PATH": str(machine.bin), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        wait_for(lambda: process.poll() is not None or (machine.calls.exists() and at in machine.calls.read_text()))
        os.killpg(process.pid, signal.SIGINT)
        try:
            out, err = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it went on
            raise
    assert not list(temporary.iterdir())
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_any_python_it_says_the_one_thing_to_do(machine: Machine) -> None:
    done = machine.setup()
    assert done.returncode == 1
    assert "no Python from 3.11 to 3.13" in done.stderr
    assert "Install one" in done.stderr
    assert not machine.venv.exists()


def test_an_interpreter_that_cannot_work_is_named(machine: Machine) -> None:
    old = machine.add("python3.10", "#!/usr/bin/env bash\nexit 1\n")
    done = machine.setup(PYTHON=str(old))
    assert done.returncode == 1
    assert f"PYTHON is {old}, expected a Python from 3.11 to 3.13" in done.stderr


def test_an_interpreter_may_lie_in_a_folder_with_a_space(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "my pythons"
    folder.mkdir()
    python = machine.add("python3.12", STUB_VENV.format(calls=machine.calls)).rename(folder / "python")
    done = machine.setup("train", PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    assert f"-m venv {machine.venv}" in machine.calls.read_text()


@pytest.mark.parametrize(
    "python",
    [
        None,
        "#!/usr/bin/env bash\nexit 1\n",  # of another version, or without pip, as `uv venv` makes one
    ],
)
def test_a_folder_that_is_there_and_does_not_work_is_left_as_it_is(python: str | None, machine: Machine) -> None:
    machine.add_uv(found="*", index="the package index")
    (machine.venv / "bin").mkdir(parents=True)
    (machine.venv / "mine").write_text("a year of work")
    if python is not None:
        machine.add("other", python).rename(machine.venv / "bin" / "python")
    done = machine.setup()
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: {machine.venv} is there, but has no Python from 3.11 to 3.13 with pip. Move it away, and run the same "
        "command again"
    ]
    assert (machine.venv / "mine").read_text() == "a year of work"
    assert not machine.calls.exists()


def test_an_environment_that_it_did_not_make_outlives_a_failed_installation(machine: Machine) -> None:
    machine.add_uv(found="nowhere", index="no place")
    (machine.venv / "bin").mkdir(parents=True)
    shutil.copy(machine.bin / "stub-python", machine.venv / "bin" / "python")
    done = machine.setup()
    assert done.returncode == 1
    assert "could not be installed for Python 3.12.9, neither from the package index nor" in done.stderr
    assert (machine.venv / "bin" / "python").exists()


def test_uv_brings_a_python_where_there_is_none(machine: Machine) -> None:
    machine.add_uv(found="*", index="the package index")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    calls = machine.calls.read_text().splitlines()
    assert calls[0] == f"uv venv --quiet --seed --python >=3.11,<3.14 {machine.venv}"
    assert not any("download.pytorch.org" in call for call in calls)
    assert any("--editable .[train,serve-cpu]" in call for call in calls)


def test_the_cpu_build_of_torch_is_looked_for_where_pytorch_has_it(machine: Machine) -> None:
    machine.add_uv(found="*--extra-index-url*download.pytorch.org*", index="PyTorch's own")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    tried = [call for call in machine.calls.read_text().splitlines() if "+cpu" in call]
    assert len(tried) == 2
    assert "download.pytorch.org/whl/cpu" not in tried[0]
    assert "download.pytorch.org/whl/cpu" in tried[1]


def test_torch_that_is_nowhere_leaves_nothing_behind(machine: Machine) -> None:
    machine.add_uv(found="nowhere", index="no place")
    done = machine.setup()
    assert done.returncode == 1
    assert "could not be installed for Python 3.12.9, neither from the package index nor" in done.stderr
    assert "PIP_FIND_LINKS=FOLDER" in done.stderr
    assert "No such file" not in done.stderr
    assert not machine.venv.exists()


@pytest.mark.parametrize(
    ("lacks", "package"), [("libnuma", "libnuma1"), ("g++", "g++"), ("Python.h", "python3.12-dev")]
)
def test_what_pip_does_not_bring_is_asked_for_first(lacks: str, package: str, machine: Machine) -> None:
    machine.add_uv(found="*", index="the package index", lacks=lacks)
    if lacks == "g++":
        (machine.bin / lacks).unlink()
    done = machine.setup()
    assert done.returncode == 1
    assert f"apt install {package})" in done.stderr
    assert "-m pip" not in machine.calls.read_text()
    assert not machine.venv.exists()
    assert machine.setup("train").returncode == 0


def test_all_that_pip_does_not_bring_is_asked_for_at_once(machine: Machine) -> None:
    machine.add_uv(found="*", index="the package index", lacks="libnuma")
    (machine.bin / "g++").unlink()
    assert "apt install libnuma1 g++)" in machine.setup().stderr
    assert machine.setup(CXX="stub-python").stderr.count("g++") == 0


def test_a_gpu_machine_asks_for_no_cpu_build(machine: Machine) -> None:
    machine.add_uv(found="nowhere", index="no place")
    done = machine.setup("train,serve")
    assert done.returncode == 0, done.stderr
    assert "+cpu" not in machine.calls.read_text()


@pytest.mark.parametrize(
    ("extras", "held"),
    [("train,serve-cpu", True), ("train,serve-cpu,dev", True), ("train,serve,dev", False), ("dev", False)],
)
def test_what_vllm_for_cpus_alone_asks_for_is_pinned_for_it_alone(extras: str, held: bool, machine: Machine) -> None:
    machine.add_uv(found="*", index="the package index")
    assert machine.setup(extras).returncode == 0
    pins = machine.calls.with_name("calls.pins").read_text().splitlines()
    assert any(line.startswith("torch==") for line in pins)
    assert any(line.startswith("triton==") for line in pins) == held


def test_the_pins_name_a_torch_to_look_for() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert any(line.startswith("torch==") for line in pins)
    assert any(line.startswith("torchvision==") for line in pins)
    assert os.access(ROOT / "setup.sh", os.X_OK)


def test_ctrl_c_while_pip_is_at_work_ends_it_without_a_false_reason(machine: Machine) -> None:
    """It went on with PyTorch's index, and a second Ctrl-C ended it with an error about wheels."""
    python = machine.add("stub-python", STUB_INTERRUPTED.format(calls=machine.calls))
    machine.add("uv", STUB_UV.format(calls=machine.calls, python=python))
    done = interrupted(machine, at=" install ")
    assert (done.returncode, done.stderr) == (130, "")
    assert "trying PyTorch's own" not in done.stdout
    assert machine.calls.read_text().count(" install ") == 1
    assert (machine.venv / "bin" / "python").exists()  # the same command goes on from here


def test_ctrl_c_while_the_environment_is_made_leaves_no_half_of_it(machine: Machine) -> None:
    """The next run would refuse it as somebody's own."""
    machine.add("uv", STUB_UV_AT_WORK.format(calls=machine.calls))
    assert interrupted(machine, at="uv").returncode in (130, -signal.SIGINT)
    assert not machine.venv.exists()
