"""What a demo that was interrupted goes on with. The demo itself is in ``tests/e2e``."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from specexit import demo as module
from specexit import processes
from specexit.config import ConfigError, load
from specexit.demo import demo, stages
from specexit.schemas.demo import DemoConfig
from specexit.schemas.train import TrainConfig

PATHS = {"target", "data", "out", "eval_traces", "init_from"}


def test_the_demo_trains_as_its_recipes_say():
    """It said steps and weights once more, and what is measured about its recipes read those of the recipes."""
    trained = [stage.arguments for stage in stages(DemoConfig()) if stage.arguments[0] == "train"]
    given = [{argument.split("=", 1)[0] for argument in arguments[2:]} for arguments in trained]
    assert [keys - PATHS for keys in given] == [{"seed", "evaluate_n"}] * 2
    draft, fc = (load(TrainConfig, Path(arguments[1]), arguments[2:]) for arguments in trained)
    assert (draft.steps, draft.signals.boundary_weight, fc.steps, fc.signals.boundary_weight) == (2240, 10, 300, 10)


@pytest.fixture
def config(tmp_path):
    return DemoConfig(out=tmp_path / "run", quick=True)


@pytest.fixture
def ran(monkeypatch):
    """Commands that were run; each leaves its output, or ends the demo as `Ctrl-C` does where it is ``ran.last``-th."""
    commands = SimpleNamespace(all=[], last=0)

    def run(command, env):
        arguments = command[4:]
        commands.all.append(arguments[0])
        commands.platforms = env["JAX_PLATFORMS"]
        keys = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        out = Path(keys.get("out", keys.get("draft")))
        out.mkdir(parents=True, exist_ok=True) if not out.suffix else out.write_text("{}")
        (out / "half").touch() if out.is_dir() else None
        if len(commands.all) == commands.last:
            raise KeyboardInterrupt
        if arguments[0] == "bench":
            (out / "results.json").write_text("{}")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(module, "save_run", lambda *_: None)  # asks git
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(run=run))
    return commands


def test_a_demo_that_was_killed_in_its_first_stage_goes_on_in_it(config, ran, capsys):
    """It was moved aside with all traces that it had collected, as "an earlier demo"."""
    ran.last = 1
    with pytest.raises(KeyboardInterrupt):
        demo(config)
    assert (config.out / "traces" / "half").exists()
    demo(config)
    assert f"going on with the unfinished demo in {config.out}" in " ".join(capsys.readouterr().err.split())
    assert (config.out / "traces" / "half").exists()
    assert not config.out.with_name("run-1").exists()
    assert ran.all == ["collect"] + [stage.arguments[0] for stage in stages(config)]


@pytest.mark.parametrize("said", [None, "", "tpu"])
def test_a_demo_trains_on_the_cpu_unless_the_user_says_otherwise(config, ran, monkeypatch, said):
    """Its steps are of one row, which several chips cannot share."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False) if said is None else monkeypatch.setenv("JAX_PLATFORMS", said)
    demo(config)
    assert ran.platforms == (said or "cpu")


@pytest.mark.parametrize("last", range(2, len(stages(DemoConfig(quick=True))) + 1))
def test_a_demo_that_was_killed_in_a_stage_goes_on_with_it(config, ran, last):
    ran.last = last
    with pytest.raises(KeyboardInterrupt):
        demo(config)
    demo(config)
    commands = [stage.arguments[0] for stage in stages(config)]
    assert ran.all == commands[:last] + commands[last - 1 :]
    assert (config.out / "results.json").exists()


def test_behind_a_stage_that_runs_again_nothing_is_taken_for_done(config, ran):
    """A draft that was removed was converted again, and then measured without having been calibrated."""
    commands = [stage.arguments[0] for stage in stages(config)]
    ran.last = commands.index("bench") + 1
    with pytest.raises(KeyboardInterrupt):
        demo(config)
    ran.all.clear()
    ran.last = 0
    shutil.rmtree(config.out / "draft")
    demo(config)
    assert ran.all == commands[commands.index("convert") :]


def test_a_demo_of_other_settings_is_moved_aside(config, ran):
    ran.last = 1
    with pytest.raises(KeyboardInterrupt):
        demo(config)
    demo(config.model_copy(update={"seed": 1}))
    assert (config.out.with_name("run-1") / "traces" / "half").exists()


@pytest.mark.parametrize("place", ["run", "run/notes.txt"], ids=["folder", "file"])
def test_what_is_no_demo_is_left_where_it_is(config, ran, place):
    """It was moved aside, as "an earlier demo"."""
    config.out.mkdir()
    (config.out / "notes.txt").write_text("mine")
    out = config.out.parent / place
    with pytest.raises(ConfigError, match=rf"^out={out}: .*, expected a folder that is empty, a demo's, or not there"):
        demo(config.model_copy(update={"out": out}))
    assert (config.out / "notes.txt").read_text() == "mine"
    assert ran.all == []


@pytest.mark.parametrize("out", [".", "../run", ".."])
def test_a_finished_demo_around_the_working_directory_is_not_moved(config, ran, out, monkeypatch):
    """It was a traceback, or the new one went into the one that had been moved aside."""
    demo(config)
    ran.all.clear()
    monkeypatch.chdir(config.out / "traces" if out == ".." else config.out)
    with pytest.raises(ConfigError, match=rf"^out={out}: an earlier demo is there, and the working directory lies in"):
        demo(config.model_copy(update={"out": Path(out)}))
    assert ran.all == []


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_a_later_stage_would_refuse_is_refused(seed):
    with pytest.raises(ConfigError, match=rf"seed is {seed}: "):
        load(DemoConfig, None, [f"seed={seed}"])


def test_an_empty_folder_is_taken(config, ran):
    config.out.mkdir()
    demo(config)
    assert not config.out.with_name("run-1").exists()
