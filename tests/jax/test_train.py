"""The training run as its users meet it: killed and continued, on one device and on eight, and refused when wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import yaml

from jax_specexit.training.checkpoint import Checkpoints, restore_params
from jax_specexit.training.data import choose_draft_vocab
from jax_specexit.training.train import train
from specexit.config import REPOSITORY, ConfigError
from specexit.data.packed import PackError, PackMeta
from specexit.drafts.files import TensorError
from specexit.schemas.target import load_target_config
from specexit.schemas.train import TrainConfig
from specexit.status import read_status
from tests.jax.devices import simulated
from tests.marks import SLOW


def losses(run: Path) -> dict[int, float]:
    """Step to loss; a step that was repeated after a kill keeps its last value."""
    return {line["step"]: line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


def run_in_process(recipe: TrainConfig, folder: Path, *, devices: int = 1, kill_at: int | None = None) -> int:
    """Train in a process of its own with simulated devices; optionally `kill -9` it behind a step."""
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    script = f"""
import os, signal
from pathlib import Path
from jax_specexit.training import train as module
from specexit.config import load
from specexit.schemas.train import TrainConfig
advance = module.Metrics.advance
def stop(self, step, metrics):
    advance(self, step, metrics)
    if step == {kill_at!r}:
        os.kill(os.getpid(), signal.SIGKILL)
module.Metrics.advance = stop
module.train(load(TrainConfig, Path({str(path)!r})))
"""
    compiled = recipe.data.parent / "compiled"
    return subprocess.run([sys.executable, "-c", script], env=simulated(devices, compiled)).returncode


@pytest.fixture(scope="module")
def finished(base_recipe: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """An uninterrupted run on one device."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    recipe = base_recipe.model_copy(update={"out": folder})
    assert run_in_process(recipe, folder) == 0
    return recipe


@pytest.fixture(scope="module")
def whole(finished: TrainConfig) -> dict[int, float]:
    """Its losses."""
    found = losses(finished.out)
    assert sorted(found) == list(range(1, 9))
    return found


def test_killed_and_continued_is_bit_equal(recipe: TrainConfig, whole: dict[int, float]) -> None:
    assert run_in_process(recipe, recipe.out, kill_at=5) == -9
    assert run_in_process(recipe, recipe.out) == 0
    assert losses(recipe.out) == whole


@SLOW
def test_eight_devices_equal_one(recipe: TrainConfig, whole: dict[int, float]) -> None:
    """As a command; steps on other meshes are compared in `test_sharded`."""
    eight = TrainConfig.model_validate(recipe.model_dump() | {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}})
    assert run_in_process(eight, recipe.out, devices=8) == 0
    ours = losses(recipe.out)
    assert ours.keys() == whole.keys()
    # Reductions run in another order, and training amplifies that; the first steps agree to rounding.
    np.testing.assert_allclose(list(ours.values()), list(whole.values()), rtol=1e-5)


def test_a_notice_while_the_last_step_is_saved_does_not_cut_that_short(
    recipe: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving goes on behind the last step, for minutes where it is large; SLURM sends a second notice, too."""
    closed, killed = Checkpoints.__exit__, Mock()

    def noticed(self: Checkpoints, *error: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        closed(self, *error)

    monkeypatch.setattr(Checkpoints, "__exit__", noticed)
    before = signal.signal(signal.SIGTERM, killed)  # or it would end the tests
    try:
        train(recipe)
    finally:
        assert signal.signal(signal.SIGTERM, before) is killed
    killed.assert_not_called()
    assert read_status(recipe.out) == ("finished", 8, 8)
    assert restore_params(recipe.out)[0] == 8


def test_a_run_says_first_what_it_trains_on(
    recipe: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A GPU that JAX was installed without is not used, which steps of minutes would tell days later."""
    monkeypatch.setattr("jax_specexit.training.start.load_target", Mock(side_effect=LookupError("loading")))
    with pytest.raises(LookupError, match="loading"):
        train(recipe)
    n, kind = jax.device_count(), jax.devices()[0].device_kind
    said = f"{recipe.out}: JAX's backend is cpu, with {n} device{'s' if n > 1 else ''} ({kind})\n"
    assert said in capsys.readouterr().err


def test_training_lowers_both_losses(recipe: TrainConfig) -> None:
    longer = recipe.model_copy(update={"steps": 40})
    train(longer)
    lines = [json.loads(line) for line in (recipe.out / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    assert last["token_loss"][0] < first["token_loss"][0]
    for name in ("progress", "remaining", "validity"):
        assert last["signal_loss"][name] < first["signal_loss"][name], name


def test_the_page_names_every_number_that_a_run_writes(finished: TrainConfig) -> None:
    """Of a line's losses it said that there are some, not what they are called."""
    page = (REPOSITORY / "docs" / "training.md").read_text()
    (told,) = re.findall(r"^Every line of `metrics\.jsonl`.*\n\n((?:\|.*\n)+)", page, re.M)
    named = {name for row in told.splitlines() for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    lines = [json.loads(line) for line in (finished.out / "metrics.jsonl").read_text().splitlines()]
    assert {name for line in lines for name in line} <= named
    (row,) = re.findall(r"^\| `draft\.json` \| .*", page, re.M)
    assert [name for name in json.loads((finished.out / "draft.json").read_text()) if f"`{name}`" not in row] == []


def test_another_recipe_does_not_continue_a_run(finished: TrainConfig) -> None:
    before = (finished.out / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="begun with batch_size=8, but the recipe says 4"):
        train(finished.model_copy(update={"batch_size": 4}))
    rates = finished.optimizer.model_copy(update={"muon_rate": 0.01})
    with pytest.raises(ConfigError, match=r"begun with optimizer\.muon_rate=0\.02, but the recipe says 0\.01;"):
        train(finished.model_copy(update={"optimizer": rates}))
    assert (finished.out / "metrics.jsonl").read_text() == before


def test_data_with_another_exit_point_does_not_continue_a_run(finished: TrainConfig, tmp_path: Path) -> None:
    """Named is what differs, and not all that a draft's block says."""
    data = Path(shutil.copytree(finished.data, tmp_path / "packed"))
    meta = json.loads((data / "meta.json").read_text())
    (data / "meta.json").write_text(json.dumps(meta | {"exit_point": "stable"}))
    said = r"draft\.json: this run was begun with specexit\.exit_point=earliest, but target and data now say stable$"
    with pytest.raises(ConfigError, match=said):
        train(finished.model_copy(update={"data": data}))


def test_other_weights_under_the_same_name_do_not_continue_a_run(finished: TrainConfig, tmp_path: Path) -> None:
    """A target may move, and its copy is known again; a fine-tune of the same sizes is another teacher."""
    target = load_target_config(finished.target)
    model = Path(shutil.copytree(target.folder, tmp_path / "model"))
    (tmp_path / "small.yaml").write_text(
        yaml.safe_dump(target.model_copy(update={"path": str(model)}).model_dump(mode="json"))
    )
    moved = finished.model_copy(update={"target": str(tmp_path / "small.yaml")})
    train(moved)
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        last = file.read()
        file.seek(-2, os.SEEK_END)
        file.write(bytes(255 - byte for byte in last))
    said = (
        r"draft\.json: this run was begun with weights of the target whose fingerprint is [0-9a-f]{64}, but those in "
    )
    with pytest.raises(ConfigError, match=said + re.escape(str(model))):
        train(moved)
    index = {"weight_map": {"model.norm.weight": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TensorError, match=r"index\.json: names model-2\.safetensors, which is not there"):
        train(moved)


def test_data_of_another_target_is_refused(recipe: TrainConfig) -> None:
    with pytest.raises(PackError, match="small"):
        train(recipe.model_copy(update={"target": "tiny-reasoner"}))
    assert not recipe.out.exists()


def test_a_mesh_that_does_not_fit_is_refused(recipe: TrainConfig) -> None:
    wrong = TrainConfig.model_validate(recipe.model_dump() | {"mesh": {"data": 3}})
    with pytest.raises(ConfigError, match="does not fit 1 devices"):
        train(wrong)


@pytest.mark.parametrize(("size", "always", "expected"), [(2, (), [2, 3]), (3, (), [2, 3, 5]), (2, (4,), [2, 4])])
def test_the_draft_vocabulary_is_the_most_frequent_tokens_and_what_must_be_in_it(
    size: int, always: tuple[int, ...], expected: list[int]
) -> None:
    """Of equals the first ones, but for one that must be in it, however rare."""
    meta = PackMeta.model_construct(token_counts=(5, 0, 9, 9, 1, 7))
    assert choose_draft_vocab(meta, size, always).tolist() == expected
