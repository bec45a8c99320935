"""What `specexit plan` says beside what it compiles: recipes, estimates, a batch that fits, the docs' table."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest
import yaml
from jax.sharding import AbstractMesh, SingleDeviceSharding

from jax_specexit.planning import page as page_of_plans
from jax_specexit.planning import plan as module
from jax_specexit.planning.aot import Lowered, Shapes, shapes_of
from jax_specexit.planning.estimate import chip_hours, estimate, first_step_bound
from jax_specexit.planning.plan import Plan, _batch_that_fits, _compile, _program, plan, show, summarise
from jax_specexit.planning.work import step_work
from jax_specexit.sharding import AXES, make_mesh
from jax_specexit.training.step import Frozen
from specexit.chips import CHIPS, Chip, chip_of
from specexit.config import REPOSITORY, ConfigError, load
from specexit.report.readme import ReadmeError
from specexit.schemas.plan import PlanConfig
from specexit.schemas.target import load_target_config
from specexit.schemas.train import MeshConfig

RECIPES = sorted((REPOSITORY / "configs" / "recipes").glob("*.yaml"))
FULL_SIZE = [path.stem for path in RECIPES if "topology" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3-4b", {"v5e", "v6e", "v5p"}),
        ("r1-llama-8b", {"v5e", "v6e", "v5p"}),
        ("qwen3-30b-a3b", {"v6e", "v5p"}),
    ],
)
def test_there_are_recipes_for_every_target(name: str, expected: set[str]) -> None:
    assert {
        recipe.split("-")[-2] for recipe in FULL_SIZE if recipe.startswith(name) and "warm" not in recipe
    } == expected


def test_a_whole_v5e_pod_takes_steps_of_at_most_half_a_million_tokens() -> None:
    config = load(PlanConfig, REPOSITORY / "configs" / "recipes" / "qwen3-4b-v5e-256.yaml")
    assert config.batch_size * config.length <= 500_000
    assert math.prod(getattr(config.mesh, axis) for axis in ("data", "fsdp", "expert", "context", "tensor")) == 256


def full_size(recipe: str) -> tuple[PlanConfig, Shapes, Chip, AbstractMesh]:
    """A recipe, and what it is planned for."""
    config = load(PlanConfig, REPOSITORY / "configs" / "recipes" / f"{recipe}.yaml")
    chip = chip_of(config.topology or "")
    sizes = [max(1, getattr(config.mesh, axis)) for axis in AXES]
    return config, shapes_of(config, load_target_config(config.target)), chip, AbstractMesh(tuple(sizes), AXES)


def test_an_estimate_says_so_and_is_made_only_of_published_numbers() -> None:
    config, shapes, chip, mesh = full_size("qwen3-4b-v5e-16")
    found = estimate(config, shapes, chip, mesh, 0.8, {"attention": 0.3, "products": 9.0, "fsdp": 0.02, "data": 0.01})
    assert found.note.startswith("estimate, not a measurement")
    # 141 TFLOP a step and chip, of which 32 are attention's, at 84 % of 197 TFLOP/s.
    assert found.seconds["products"] == pytest.approx((140.96e12 - 31.90e12) / (0.84 * 197e12), rel=0.001)
    assert found.seconds["attention"] == 0.3
    assert found.seconds["exposed"] == pytest.approx(0.03)
    assert found.exposed_seconds == {"fsdp": 0.02, "data": 0.01}
    # 96 % of them are useful, and whole runs reach 56 % of the peak, which is slower than all of these together.
    useful = 0.960 * 140.96e12
    assert sum(found.seconds.values()) < found.step_seconds == found.run_seconds
    assert found.step_seconds == pytest.approx(useful / (0.56 * 197e12), rel=0.01)
    assert found.mfu == pytest.approx(0.56)
    assert found.chip_hours == pytest.approx(6000 * found.step_seconds * 16 / 3600)
    # A step that waits for longer is slower, and none is faster than the bound.
    waits = estimate(config, shapes, chip, mesh, 0.8, {"attention": 0.3, "fsdp": 1.0})
    assert waits.step_seconds == pytest.approx(found.seconds["products"] + 0.3 + 1.0)
    assert waits.mfu == pytest.approx(useful / waits.step_seconds / 197e12, rel=0.01)
    assert estimate(config, shapes, chip, mesh, 9.0, {}).step_seconds == 9.0


def test_steps_of_one_ttt_step_are_counted_as_such() -> None:
    """Or a run could be faster than what it takes "at least"."""
    config, shapes, chip, mesh = full_size("qwen3-4b-v5e-16")
    shorter = config.model_copy(update={"first_step_share": 0.75})
    first = first_step_bound(shorter, shapes, chip, mesh)
    one = step_work(config.model_copy(update={"ttt_steps": 1}), shapes, mesh)
    assert first == pytest.approx(sum(w.flops for w in one) / 197e12)  # compute binds
    step = sum(w.flops for w in step_work(config, shapes, mesh)) / 197e12
    assert first < 0.9 * step
    assert chip_hours(config, mesh, step, first) == pytest.approx(6000 * step * 16 / 3600)
    least = chip_hours(shorter, mesh, step, first)
    assert least == pytest.approx((4500 * first + 1500 * step) * 16 / 3600)
    whole, guess = (estimate(c, shapes, chip, mesh, step, {"attention": 0.3}) for c in (config, shorter))
    assert least < guess.chip_hours < whole.chip_hours
    assert guess.step_seconds == whole.step_seconds
    # Where all steps are of one TTT step, none is shorter.
    single = shorter.model_copy(update={"ttt_steps": 1})
    assert chip_hours(single, mesh, step, first) == chip_hours(config, mesh, step, first)


@pytest.mark.parametrize("recipe", FULL_SIZE)
def test_every_recipe_has_an_estimate(recipe: str) -> None:
    """Mixtures and chips of which less is published, too."""
    config, shapes, chip, mesh = full_size(recipe)
    found = estimate(config, shapes, chip, mesh, 0.0, {"fsdp": 0.001})
    experts = shapes.target.num_experts > 0
    assert 0.2 < found.mfu < (0.9 if config.target_int8 else 0.7)
    assert found.seconds["products"] > 0
    assert found.seconds["attention"] > 0
    assert (found.seconds["experts"] > 0) == experts == (found.efficiencies.run in (0.53, 0.35))
    assert found.run_seconds is not None
    assert found.step_seconds == max(sum(found.seconds.values()), found.run_seconds)


def test_a_chip_without_published_runs_is_estimated_by_parts() -> None:
    config, shapes, _, mesh = full_size("qwen3-4b-v5e-16")
    found = estimate(config, shapes, CHIPS["tpu7x"], mesh, 0.0, {"attention": 0.1, "fsdp": 0.01})
    assert found.run_seconds is None
    assert found.step_seconds == sum(found.seconds.values()) > 0.11


class TooLarge:
    """A step whose compilation ends as libtpu ends it."""

    says = "RESOURCE_EXHAUSTED: Used 24.00G of 15.75G hbm. Exceeded hbm capacity by 8.25G."

    def compile(self) -> None:
        raise jax.errors.JaxRuntimeError(self.says)


def too_large(mesh: AbstractMesh, gib: int = 20) -> Lowered:
    """A step of which nothing fits beside so many GiB."""
    one = SingleDeviceSharding(jax.devices()[0])
    state: Any = jax.ShapeDtypeStruct((gib, 2**28), jnp.float32, sharding=one)
    step: Any = TooLarge()
    where: Any = mesh
    return Lowered(where, step, Frozen(None, None, None), state, {})


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("begin", r"a larger mesh\.fsdp or mesh\.tensor"),
        ("quantize", r"a larger mesh\.fsdp or mesh\.tensor"),
        ("measure", r"a larger mesh\.fsdp or mesh\.tensor, or a shorter length"),
        ("evaluate", r"a smaller evaluate_length \(down to length\), or a larger mesh\.context"),
    ],
)
def test_a_program_that_does_not_fit_is_refused_with_what_makes_it_smaller(name: str, remedy: str) -> None:
    """Rows of an evaluation are as long as its traces, and other programs have none."""
    _, _, chip, mesh = full_size("r1-llama-8b-v5e-16")
    lower: Any = TooLarge
    with pytest.raises(ConfigError, match=rf"^{name} needs 24\.0 GiB .* has 15\.75: choose {remedy}$"):
        _program(name, lower, too_large(mesh), chip)


def test_a_program_that_fits_alone_is_refused_beside_what_else_is_there() -> None:
    """Its 15.7 GiB are what the compiler has seen, and 0.2 more are held: less than v5e's 16, more than it can have."""
    _, _, chip, mesh = full_size("r1-llama-8b-v5e-16")
    sizes = dict.fromkeys(("output", "alias", "generated_code"), 0.0) | {"argument": 0.8, "temp": 14.9}
    compiled = Mock(spec=jax.stages.Compiled)
    found = {f"{name}_size_in_bytes": int(gib * 2**30) for name, gib in sizes.items()}
    compiled.memory_analysis.return_value = SimpleNamespace(**found)
    with pytest.raises(ConfigError, match=r"^evaluate needs 15\.9 GiB .* else is on it then, a v5e has 15\.75: choose"):
        _program("evaluate", lambda: Mock(compile=lambda: compiled), too_large(mesh, gib=1), chip)


def test_no_batch_fits_beside_weights_that_alone_are_too_much() -> None:
    """Of 20 GiB on chips of 16, less than nothing is left for temporaries."""
    _, shapes, chip, mesh = full_size("r1-llama-8b-v5e-16")
    assert _batch_that_fits(20.0, 3.0, chip.hbm_gib, shapes, mesh) == 0
    assert _batch_that_fits(7.9, 3.0, chip.hbm_gib, shapes, mesh) == 2 * 16
    with pytest.raises(ConfigError, match=r"needs 24\.0 GiB .* has 15\.75: choose a larger mesh\.fsdp or mesh\.tensor"):
        _compile(too_large(mesh), chip, shapes)


@pytest.mark.parametrize("temporaries", [False, True])
def test_the_batch_that_fits_has_room_for_the_next_one(temporaries: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 GiB, 1 is weights. A batch of stored features is in the other 23, and the next comes meanwhile. Where the
    compiler speaks of temporaries alone, that batch is not in them either."""
    _, shapes, chip, mesh = full_size("r1-llama-8b-v5e-16")
    shapes = shapes._replace(batch=16 * 16, stored="float32")
    rows = 16 * shapes.length * len(shapes.layers) * shapes.target.hidden_size * 4 / 2**30
    if temporaries:
        says = "the total memory required for HLO temporaries (23.00G) exceeds available HBM (15.75G)."
        monkeypatch.setattr(TooLarge, "says", says)
    held = rows if temporaries else 0
    alone, fits = (int(16 * (0.9 * 16 - 1) / beside) * 16 for beside in (23 + held, 23 + held + rows))
    assert 0 < fits < alone
    needs = re.escape(f"needs {24 + held:.1f} GiB")
    with pytest.raises(ConfigError, match=rf"{needs} .* has 15\.75: choose batch_size={fits} \(estimated\)"):
        _compile(too_large(mesh, gib=1), chip, shapes)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _, chip, _ = full_size("qwen3-4b-v5e-16")
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "topology_devices", lambda *_: (chip, []))
    monkeypatch.setattr(module, "lower_step", Mock(side_effect=LookupError("compiling")))
    with pytest.raises(ConfigError, match=rf"^out={tmp_path}/file: .* is no folder, expected a new folder or a run's"):
        plan(config.model_copy(update={"out": tmp_path / "file"}))
    with pytest.raises(LookupError, match="compiling"):
        plan(config.model_copy(update={"out": tmp_path / "run"}))


def summarised(config: PlanConfig, shapes: Shapes, chip: Chip) -> Plan:
    """The plan of a step that was compiled to next to nothing."""
    sizes = dict.fromkeys(("output", "alias", "generated_code"), 0) | {"argument": 2**30, "temp": 2**31}
    memory = SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})
    compiled = Mock(spec=jax.stages.Compiled)
    compiled.memory_analysis.return_value = memory
    compiled.as_text.return_value = "ENTRY %main (x: f32[1]) -> f32[1] {\n  ROOT %x = f32[1] parameter(0)\n}\n"
    return summarise(config, shapes, chip, make_mesh(MeshConfig(), jax.devices()[:1]), compiled, 1.0, {})


def test_stored_features_grow_with_the_rows_and_lie_there_twice() -> None:
    """They were taken as fixed, so that a batch was said to fit that does not; and the next batch comes meanwhile."""
    config, shapes, chip, _ = full_size("qwen3-4b-v5e-16")
    bare = summarised(config, shapes._replace(batch=1), chip)
    assert (bare.hbm_gib.total, bare.batch_that_fits) == (3, int((0.9 * 16 - 1) / 2))
    row = 8192 * len(shapes.layers) * 2560 * 4 / 2**30
    found = summarised(config, shapes._replace(batch=1, stored="float32"), chip)
    assert found.hbm_gib.total == pytest.approx(3 + row)
    assert found.batch_that_fits == int((0.9 * 16 - (1 - row)) / (2 + 2 * row)) < bare.batch_that_fits
    said = r"^batch_size=48 of length 8192 needs .* with the next batch of features .*: choose batch_size=\d+"
    with pytest.raises(ConfigError, match=said):
        summarised(config, shapes._replace(batch=48, stored="float32"), chip)


def test_a_plan_without_the_draft_that_it_starts_from_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It was that of the recipe's sizes, in silence: a draft may have embeddings, norms and biases beside them."""
    config, shapes, chip, _ = full_size("qwen3-4b-v5e-16")
    for name, unseen in ((tmp_path / "nowhere", True), (tmp_path, False), (None, False)):
        warm = config.model_copy(update={"init_from": name})
        show(summarised(warm, shapes, chip), tmp_path, as_json=False)
        said = f"init_from={name} is not there to be read, so this is the plan of a draft with nothing but the recipe's"
        printed = "".join(capsys.readouterr().out.split())  # in lines that may end within the path
        assert ("".join(said.split()) in printed) == unseen
        assert (said in json.loads((tmp_path / "plan.json").read_text())["note"]) == unseen


def test_a_plan_is_printed_before_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It took minutes, and a disk may be full by then."""
    config, shapes, chip, _ = full_size("qwen3-4b-v5e-16")
    found = summarised(config, shapes, chip)
    (tmp_path / "plan.json").mkdir()
    for as_json, said in ((True, '"total": 3.0'), (False, "3.0 of 16 GiB, 81% to spare")):
        with pytest.raises(IsADirectoryError):
            show(found, tmp_path, as_json=as_json)
        assert said in capsys.readouterr().out


def test_the_table_stands_between_its_marks(tmp_path: Path) -> None:
    memory = {"total": 10.94, "capacity": 16.0, "spare": 0.316}
    found = {
        "hbm_gib": memory,
        "others": {"measure": {"hbm_gib": memory | {"total": 3.0}}, "evaluate": {"hbm_gib": memory | {"total": 5.04}}},
        "step_seconds": 0.876,
        "binds": "compute",
        "chip_hours": 23.2,
        "estimate": {"step_seconds": 1.5, "seconds": {"products": 1.1, "exposed": 0.046}, "mfu": 0.523},
        "compute_seconds_of_target": {"dtype": 0.8, "int8": 0.6},
    }
    for recipe, more in (("one", {}), ("two", {"chip_hours": 124.6})):
        (tmp_path / recipe).mkdir()
        (tmp_path / recipe / "plan.json").write_text(json.dumps(found | more))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{page_of_plans.BEGIN}\nold\n{page_of_plans.END}\nbehind\n")
    page_of_plans.main(page, sorted(tmp_path.glob("*/plan.json")))
    before, _, *rows, _, behind = page.read_text().splitlines()
    assert (before, behind) == ("before", "behind")
    assert rows[2:] == [
        "| `one` | 10.9 of 16 | 32 % | 5.0 (evaluate) | 0.88 | compute | 23 | 0.05 | 1.50 | 52 % | -25 % |",
        "| `two` | 10.9 of 16 | 32 % | 5.0 (evaluate) | 0.88 | compute | 125 | 0.05 | 1.50 | 52 % | -25 % |",
    ]
    page.write_text("nothing")
    with pytest.raises(ReadmeError, match="expected one line '<!-- plans"):
        page_of_plans.main(page, [])
