"""The files in configs/jobs, run with stand-ins for what only a cluster has. Two seconds."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from specexit.errors import LASTING
from tests.waiting import wait_for

JOBS = Path(__file__).resolve().parents[2] / "configs" / "jobs"

STAND_IN = """#!/usr/bin/env bash
# `status` is the real one, of what this run wrote, wherever it was told to write.
if [ "$1" = status ]; then echo "${{2#run=}}" > {folder}/asked; exec {python} -m specexit status {folder}; fi
echo "$@" > {folder}/called
echo "${{LIBTPU_INIT_ARGS:-}}" > {folder}/flags
echo "${{JAX_COMPILATION_CACHE_DIR:-}}" > {folder}/cache
is() {{ echo "{{\\"status\\": \\"$1\\", \\"step\\": 4, \\"steps\\": 8}}" > {folder}/status.json; }}
trap 'is preempted; exit 0' TERM
touch {folder}/started
if [ {waits} = 1 ]; then for i in $(seq 3000); do [ -e {folder}/may-end ] && break; sleep 0.1; done; fi
is {status}
exit {code}
"""


def stand_in(folder: Path, name: str, *, waits: bool = False, code: int = 0, status: str = "finished") -> None:
    path = folder / name
    path.write_text(STAND_IN.format(folder=folder, python=sys.executable, waits=int(waits), code=code, status=status))
    path.chmod(0o755)


BUCKET = "gs://bucket/runs/draft"


def environment(folder: Path, **more: str) -> dict[str, str]:
    found = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "RECIPE": "r.yaml", "OUT": str(folder), **more}
    return {name: value for name, value in found.items() if name != "JAX_COMPILATION_CACHE_DIR"}


def catches(process: subprocess.Popen, number: signal.Signals) -> bool:
    """Whether a process has a handler of a signal by now."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1)


def jobset() -> dict:
    return yaml.safe_load((JOBS / "jobset.yaml").read_text())["spec"]


def job() -> dict:
    found = jobset()["replicatedJobs"][0]["template"]["spec"]
    assert found["parallelism"] == found["completions"]
    return found


def container() -> dict:
    return job()["template"]["spec"]["containers"][0]


def pod(folder: Path, **more: str) -> subprocess.Popen:
    spec = container()
    return subprocess.Popen([*spec["command"], *spec["args"]], env=environment(folder, **more))


@pytest.mark.parametrize("code", [0, 1, LASTING])
def test_a_pod_ends_as_its_run_does(tmp_path: Path, code: int) -> None:
    stand_in(tmp_path, "specexit", code=code)
    assert pod(tmp_path).wait(300) == code
    assert (tmp_path / "called").read_text().split() == ["train", "r.yaml", f"out={tmp_path}"]


def ends_the_jobset(code: int) -> bool:
    """What Kubernetes and JobSet make of a pod's exit code: either their rules fit, or all pods are restarted."""
    [rule], [above] = job()["podFailurePolicy"]["rules"], jobset()["failurePolicy"]["rules"]
    assert (rule["action"], above["action"]) == ("FailJob", "FailJobSet")
    assert above["onJobFailureReasons"] == ["PodFailurePolicy"]
    codes = rule["onExitCodes"]
    assert (codes["containerName"], codes["operator"]) == (container()["name"], "In")
    return code in codes["values"]


def test_what_would_only_come_again_is_not_restarted() -> None:
    """A NaN used to be trained up to a hundred times more, and a wrong recipe to be refused as often."""
    assert ends_the_jobset(LASTING)
    assert job()["template"]["spec"]["restartPolicy"] == "Never"  # Kubernetes takes a podFailurePolicy with no other


@pytest.mark.parametrize("code", [1, 75, 128 + signal.SIGABRT, 128 + signal.SIGKILL, 128 + signal.SIGTERM])
def test_what_may_go_better_next_time_is_restarted(code: int) -> None:
    """JAX aborts a host whose peers have died, or raises what is a traceback."""
    assert not ends_the_jobset(code)


def test_a_pod_whose_run_is_finished_in_a_bucket_is_done(tmp_path: Path) -> None:
    """It used to look for a file of that name on disk, and was restarted a hundred times."""
    stand_in(tmp_path, "specexit")
    assert pod(tmp_path, OUT=BUCKET).wait(300) == 0
    assert (tmp_path / "called").read_text().split() == ["train", "r.yaml", f"out={BUCKET}"]
    assert (tmp_path / "asked").read_text() == f"{BUCKET}\n"


def test_a_preempted_pod_saves_and_is_restarted(tmp_path: Path) -> None:
    """SIGTERM reaches the run through the shell, and its 0 does not count as done."""
    stand_in(tmp_path, "specexit", waits=True)
    process = pod(tmp_path)
    wait_for((tmp_path / "started").exists)
    wait_for(lambda: catches(process, signal.SIGTERM))  # the shell sets its trap while the run starts
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) != 0
    assert "preempted" in (tmp_path / "status.json").read_text()


def test_a_pod_finds_what_a_recipe_names_by_relative_paths() -> None:
    spec = container()
    assert spec["workingDir"] == spec["volumeMounts"][0]["mountPath"]


def test_a_pod_saves_where_no_folder_is_renamed() -> None:
    """A kill during the rename in a mounted bucket left half a checkpoint, at which a hundred restarts failed."""
    out = next(entry["value"] for entry in container()["env"] if entry["name"] == "OUT")
    (volume,) = job()["template"]["spec"]["volumes"]
    assert out.startswith(f"gs://{volume['csi']['volumeAttributes']['bucketName']}/")


GCLOUD = """#!/usr/bin/env bash
# ssh to all workers, or to one, which is watched: this machine
while [ $# -gt 0 ]; do
  case $1 in --worker=0) touch ~/watched ;; --command=*) exec bash -c "${1#--command=}" ;; esac
  shift
done
"""


def tpu_vm(folder: Path, out: str, recipe: str = "r.yaml", **more: str) -> subprocess.Popen:
    command = ["bash", str(JOBS / "tpu-vm.sh"), "slice", "zone", recipe, out]
    given = environment(folder, HOME=str(folder), **more)
    return subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True, start_new_session=True)


def slice_of_this_machine(folder: Path, *, waits: bool = False, status: str = "finished") -> None:
    (folder / "gcloud").write_text(GCLOUD)
    (folder / "gcloud").chmod(0o755)
    # By itself it looks once a second whether the run has ended.
    (folder / "tail").write_text(f'#!/bin/sh\nexec {shutil.which("tail")} --sleep-interval=0.05 "$@"\n')
    (folder / "tail").chmod(0o755)
    stand_in(folder, "specexit", waits=waits, status=status)


def test_a_host_without_the_working_folder_starts_nothing(tmp_path: Path) -> None:
    """It used to train in its home folder, where a disk was not mounted."""
    slice_of_this_machine(tmp_path)
    process = tpu_vm(tmp_path, str(tmp_path / "run"), WORKDIR=str(tmp_path / "disk"))
    assert f"{tmp_path}/disk: No such file or directory" in process.communicate(timeout=300)[1]
    assert process.returncode == 2
    assert not (tmp_path / "called").exists()


HARD = 'lr=1/it\'s $HOME (a); "b"*'
"""A folder as there may be one: with whatever a shell could read in its name, and what could be a key."""

OWN_FOLDER = """#!/usr/bin/env bash
# `train` notes its words, and is finished.
if [ "$1" = status ]; then exec {python} -m specexit "$@"; fi
printf '%s\\n' "$@" "$JAX_COMPILATION_CACHE_DIR" > {folder}/called
echo '{{"status": "finished", "step": 8, "steps": 8}}' > "${{3#out=}}/status.json"
"""


@pytest.mark.parametrize("kind", ["pod", "tpu-vm", "slurm"])
def test_a_path_is_handed_on_as_it_is(tmp_path: Path, kind: str) -> None:
    """With a quote in it nothing started on a TPU VM. The status of a run in lr=1 was that of a key: a job that was
    preempted was not requeued, and a finished JobSet would have been started a hundred times."""
    slice_of_this_machine(tmp_path)
    (tmp_path / "specexit").write_text(OWN_FOLDER.format(folder=tmp_path, python=sys.executable))
    out, recipe, compiled = tmp_path / HARD, f"{HARD}.yaml", f"{(tmp_path / HARD).parent}/compiled"
    out.mkdir(parents=True)
    if kind == "pod":
        compiled = ""  # its manifest says where
        assert pod(tmp_path, OUT=str(out), RECIPE=recipe).wait(300) == 0
    elif kind == "slurm":
        assert slurm(tmp_path, str(out), recipe=recipe) == 0
    else:
        process = tpu_vm(tmp_path, str(out), recipe=recipe)
        assert process.communicate(timeout=300)[1] == ""
        assert process.returncode == 0
    assert (tmp_path / "called").read_text().split("\n") == ["train", recipe, f"out={out}", compiled, ""]


def test_another_process_under_the_number_of_a_run_is_not_the_run(tmp_path: Path) -> None:
    """Numbers begin again when a machine does."""
    slice_of_this_machine(tmp_path)
    (tmp_path / "specexit-train.pid").write_text(f"{os.getpid()}\n")
    tpu_vm(tmp_path, str(tmp_path / "run")).communicate(timeout=300)
    assert (tmp_path / "called").read_text().startswith("train r.yaml")


def test_what_a_run_on_a_tpu_vm_has_ended_of_can_still_be_read(tmp_path: Path) -> None:
    """Whoever came back to look at it started it again, and its log anew."""
    slice_of_this_machine(tmp_path)
    log = tmp_path / "specexit-train.log"
    log.write_text("error: why it has ended\n")
    tpu_vm(tmp_path, str(tmp_path / "run")).communicate(timeout=300)
    assert (tmp_path / "called").exists()
    assert log.read_text().startswith("error: why it has ended\n")


def test_a_run_on_a_tpu_vm_outlives_the_connection(tmp_path: Path) -> None:
    slice_of_this_machine(tmp_path, waits=True)
    out = str(tmp_path / "run")
    first = tpu_vm(tmp_path, out)
    number, watched = tmp_path / "specexit-train.pid", tmp_path / "watched"
    wait_for(lambda: (tmp_path / "started").exists() and number.exists() and number.read_text())
    os.killpg(first.pid, signal.SIGKILL)  # the connection and all that hangs on it
    first.communicate()
    watched.unlink(missing_ok=True)
    (tmp_path / "called").write_text("")
    second = tpu_vm(tmp_path, out)  # looks at the run that goes on, and starts no other
    wait_for(watched.exists)
    (tmp_path / "may-end").touch()
    second.communicate(timeout=120)
    assert "finished" in (tmp_path / "status.json").read_text()
    assert (tmp_path / "called").read_text() == ""
    given = {entry["name"]: entry["value"] for entry in container()["env"]}
    assert (tmp_path / "flags").read_text().split() == given["LIBTPU_INIT_ARGS"].split()
    assert (tmp_path / "cache").read_text() == f"{tmp_path}/compiled\n"


@pytest.mark.parametrize(
    ("status", "code"), [("finished", 0), ("preempted", 75), ("stopped", LASTING), ("of no kind", 1)]
)
def test_a_run_in_a_bucket_on_a_tpu_vm_says_whether_it_is_finished(tmp_path: Path, status: str, code: int) -> None:
    """And compiles into that bucket, what a restart then loads from there."""
    slice_of_this_machine(tmp_path, status=status)
    process = tpu_vm(tmp_path, BUCKET)
    process.communicate(timeout=300)
    assert process.returncode == code
    assert (tmp_path / "called").read_text().split() == ["train", "r.yaml", f"out={BUCKET}"]
    assert (tmp_path / "asked").read_text() == f"{BUCKET}\n"
    assert (tmp_path / "cache").read_text() == "gs://bucket/runs/compiled\n"


def test_a_run_with_another_out_is_not_taken_for_the_one_that_is_asked_for(tmp_path: Path) -> None:
    """Nothing was started, and what was shown was the log of the run that was there."""
    slice_of_this_machine(tmp_path, waits=True)
    first, number = tpu_vm(tmp_path, str(tmp_path / "run")), tmp_path / "specexit-train.pid"
    wait_for(lambda: (tmp_path / "started").exists() and number.exists() and number.read_text())
    second = tpu_vm(tmp_path, str(tmp_path / "other"))
    said = second.communicate(timeout=60)[1]
    (tmp_path / "may-end").touch()
    first.communicate(timeout=120)
    assert second.returncode == 2
    assert f"trains with another OUT than {tmp_path / 'other'}" in said
    assert first.returncode == 0
    assert (tmp_path / "called").read_text().split() == ["train", "r.yaml", f"out={tmp_path / 'run'}"]


@pytest.mark.parametrize("words", [[], ["slice", "zone", "r.yaml"], ["slice", "zone", "r.yaml", "/run", "steps=9"]])
def test_a_tpu_vm_is_given_four_words(tmp_path: Path, words: list[str]) -> None:
    """Too few were an unbound variable, and a key behind them was passed over."""
    slice_of_this_machine(tmp_path)
    command = ["bash", str(JOBS / "tpu-vm.sh"), *words]
    done = subprocess.run(command, env=environment(tmp_path, HOME=str(tmp_path)), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: tpu-vm.sh NAME ZONE RECIPE OUT;")
    assert not (tmp_path / "called").exists()


def test_a_relative_folder_on_a_tpu_vm_is_refused(tmp_path: Path) -> None:
    process = tpu_vm(tmp_path, "runs/draft")
    assert "expected an absolute path" in process.communicate(timeout=300)[1]
    assert process.returncode == 2


def test_a_command_on_no_shell_s_path_is_run_by_its_own(tmp_path: Path) -> None:
    """A virtual environment's, on a TPU VM whose own Python is too old, ended in "failed to run command" in a log."""
    slice_of_this_machine(tmp_path)
    own = tmp_path / "environment" / "specexit"
    own.parent.mkdir()
    (tmp_path / "specexit").rename(own)
    process = tpu_vm(tmp_path, str(tmp_path / "run"), SPECEXIT=str(own))
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert (tmp_path / "called").read_text().split() == ["train", "r.yaml", f"out={tmp_path / 'run'}"]
    assert (tmp_path / "asked").read_text() == f"{tmp_path / 'run'}\n"


def slurm(folder: Path, out: str, *keys: str, recipe: str = "r.yaml") -> int:
    """Exit code of the job, whose tasks are one process of this machine."""
    for name, runs in (("srun", 'shift; exec "$@"'), ("scontrol", f'echo "$@" > {folder}/requeued')):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{runs}\n")
        (folder / name).chmod(0o755)
    command = ["bash", str(JOBS / "slurm.sbatch"), recipe, out, *keys]
    return subprocess.run(command, env=environment(folder, SLURM_JOB_ID="7"), timeout=300).returncode


@pytest.mark.parametrize("out", ["/shared/runs/draft", "draft", BUCKET])
@pytest.mark.parametrize(("status", "requeued"), [("finished", False), ("preempted", True)])
def test_slurm_requeues_what_is_not_finished(tmp_path: Path, status: str, requeued: bool, out: str) -> None:
    stand_in(tmp_path, "specexit", status=status)
    assert slurm(tmp_path, out) == 0
    assert (tmp_path / "asked").read_text() == f"{out}\n"
    beside = out.removesuffix("draft") or "./"  # not in the run's folder, which would be taken for somebody else's
    assert (tmp_path / "cache").read_text() == f"{beside}compiled\n"
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text().split() == ["requeue", "7"]


@pytest.mark.parametrize(
    ("code", "status", "found"), [(1, "running", 1), (LASTING, "stopped", LASTING), (0, "of no kind", 1)]
)
def test_slurm_does_not_requeue_a_failure_nor_what_nobody_knows(
    tmp_path: Path, code: int, status: str, found: int
) -> None:
    stand_in(tmp_path, "specexit", code=code, status=status)
    assert slurm(tmp_path, "/shared/runs/draft") == found
    assert not (tmp_path / "requeued").exists()


def test_slurm_passes_over_no_key(tmp_path: Path) -> None:
    stand_in(tmp_path, "specexit")
    assert slurm(tmp_path, "/shared/runs/draft", "steps=9") == 2
    assert not (tmp_path / "called").exists()


def test_the_secret_that_the_page_makes_has_every_key_that_the_server_may_ask_for() -> None:
    """Without the operator's, no pod starts of a manifest whose comment is taken away, as the runbook has it."""
    asked = re.findall(r"secretKeyRef: \{name: specexit, key: ([a-z-]+)\}", (JOBS / "serving.yaml").read_text())
    assert set(asked) == {"api-key", "operator-key"}
    page = (JOBS.parents[1] / "docs" / "serving-operator.md").read_text()
    (made,) = re.findall(r"kubectl create secret generic specexit ([^`]*)`", page)
    assert [key for key in asked if f"--from-literal={key}=" not in made] == []


def test_the_page_says_what_has_to_be_there_before_the_manifest_is_applied() -> None:
    """Without its account no pod is made, and nothing says so but the job's events."""
    page = (JOBS.parents[1] / "docs" / "training.md").read_text()
    (told,) = re.findall(r"^\*\*What has to be there first\.\*\*.*?(?=^Two processes)", page, re.M | re.S)
    spec = job()["template"]["spec"]
    (volume,) = spec["volumes"]
    asked = [f"`kubectl create serviceaccount {spec['serviceAccountName']}`", container()["image"].partition("/")[0]]
    asked += [volume["csi"]["driver"].partition(".")[0], volume["csi"]["volumeAttributes"]["bucketName"]]
    recipe = next(entry["value"] for entry in container()["env"] if entry["name"] == "RECIPE")
    assert [name for name in [*asked, f"`{Path(recipe).name}`"] if name not in told] == []
    assert "SPECEXIT=" in told
