"""What a run leaves in its folder, and what stops it: evaluation, best checkpoint, profile, NaN, SIGTERM.

About 80 s of CPU time: a very small draft is trained five times, and compiled twice.
"""

import errno
import gc
import itertools
import json
import os
import shutil
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import yaml
from jax.experimental.compilation_cache import compilation_cache

from jax_specexit import cluster
from jax_specexit.convert import convert
from jax_specexit.evaluation import held_out
from jax_specexit.training import train as module
from jax_specexit.training.checkpoint import restore_params
from jax_specexit.training.metrics import Metrics
from jax_specexit.training.nonfinite import NotFiniteError
from jax_specexit.training.optimizer import schedule
from jax_specexit.training.run import check_folder, read_start, save_start
from jax_specexit.training.train import train
from specexit import cli
from specexit.config import ConfigError
from specexit.data.overlap import OverlapError
from specexit.data.packed import FIELDS, read_example, read_meta
from specexit.data.packing import pack
from specexit.data.traces import read_labelled
from specexit.drafts.directory import read_draft
from specexit.drafts.policy import Selection, read_policy
from specexit.errors import lasts
from specexit.method.signals import NAMES
from specexit.report.run import read_lines, training_rows
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.evaluate import EvaluateConfig
from specexit.schemas.pack import PackConfig
from specexit.schemas.train import TrainConfig
from specexit.status import Status, read_status


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What one training has compiled, the next ones load."""
    before = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    compilation_cache.reset_cache()


def changed(recipe: TrainConfig, **changes: object) -> TrainConfig:
    return TrainConfig.model_validate(recipe.model_dump() | changes)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def status(run: Path) -> str:
    return json.loads((run / "status.json").read_text())["status"]


@pytest.fixture(scope="module")
def evaluated(
    base_recipe: TrainConfig, packed: Path, small_target: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainConfig:
    """Eight steps on rows that are shorter than some traces, evaluated every four, three of them profiled."""
    folder, traces = tmp_path_factory.mktemp("evaluated"), packed.parent / "traces.parquet"
    trained = packed.parent / "trained"
    pack(PackConfig(traces=trained, out=folder / "packed", target=str(small_target), length=64))
    config = changed(
        base_recipe,
        out=folder / "run",
        data=folder / "packed",
        eval_traces=traces,
        evaluate_every=4,
        best_by="brier",
        profile_steps=[2, 4],
        log_every=3,
    )
    config.out.mkdir()
    (config.out / "plan.json").write_text("{}")  # what `specexit plan` leaves is no run
    train(config)
    return config


def test_evaluations_are_in_the_metrics(evaluated: TrainConfig) -> None:
    found = {line["step"]: line["evaluation"] for line in lines(evaluated.out) if "evaluation" in line}
    assert sorted(found) == [4, 8]
    last = json.loads((evaluated.out / "evaluation.json").read_text())
    assert {key: value for key, value in last.items() if key != "definitions"} == found[8]
    assert 1 <= last["acceptance_length"] <= 1 + evaluated.ttt_steps
    assert "accepted draft tokens + 1 bonus token" in last["definitions"]["acceptance_length"]
    assert set(last["signal_loss"]) == set(NAMES)
    assert last["all_boundaries"]["n"] > 0
    assert any(evaluated.out.glob("tensorboard/events*"))


def test_the_time_is_accounted_for(evaluated: TrainConfig) -> None:
    written = lines(evaluated.out)
    for line in written:
        assert set(line["seconds"]) == {"compile", "data", "step", "save", "evaluate"}
        assert 0 < line["goodput"] < 1
        assert set(line["learning_rate"]) == {"muon", "adam", "head"}
        assert "mfu" not in line  # nobody has published a CPU's peak here
    assert written[0]["seconds"]["compile"] > 0
    assert sum(line["seconds"]["compile"] for line in written[1:]) == 0
    for line in written:  # steps 4 and 8 are saved and evaluated
        assert (line["seconds"]["evaluate"] > 0) == ("evaluation" in line)
    spent = [line["seconds"]["data"] + line["seconds"]["step"] for line in written]
    trained = [line["trained_seconds"] for line in written]
    np.testing.assert_allclose(trained, np.cumsum(spent), atol=0.01)  # rounded when written


def test_goodput_counts_the_time_before_the_first_step(recipe: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour, on the clock by which a run begins, in which its target is loaded."""
    start, clock = module.start, SimpleNamespace(time=lambda: 1000.0)

    def slow(*arguments: Any) -> Any:
        clock.time = lambda: 4600.0
        return start(*arguments)

    monkeypatch.setattr("jax_specexit.training.run.time", clock)
    monkeypatch.setattr(module, "start", slow)
    monkeypatch.setattr(module.Loop, "run", lambda *_: ("preempted", 0))
    train(recipe)
    assert json.loads((recipe.out / "status.json").read_text())["began"] == 1000.0


def test_evaluation_inside_a_run_is_the_command_s(evaluated: TrainConfig, small_target: Path, packed: Path) -> None:
    """Rows of packed traces against one trace at a time, two programs and two layouts of the same numbers."""
    from flax import nnx

    from jax_specexit.evaluation.judging import judge
    from jax_specexit.evaluation.scoring import score
    from jax_specexit.model.draft import Draft
    from jax_specexit.weights import load_target
    from specexit.schemas.target import load_target_config

    start, target = read_start(evaluated.out), load_target_config(str(small_target))
    draft = Draft(start.shape, rngs=nnx.Rngs(0), aux_rms=start.aux_rms)
    nnx.update(draft, restore_params(evaluated.out)[1])
    traces = read_labelled(packed.parent / "traces.parquet")
    end = target.think_tokens().end
    done = score(draft, load_target(target.folder), start.vocab, traces, think_end=end, ttt_steps=evaluated.ttt_steps)
    theirs = judge(list(done), 8, "earliest").to_json()
    served, steps = load_target(target.folder, "bfloat16"), evaluated.ttt_steps
    half = score(draft, served, start.vocab, traces, think_end=end, ttt_steps=steps, dtype="bfloat16")
    rounded = judge(list(half), 8, "earliest").all_boundaries.brier
    # A number in bfloat16 is right to one part in 256, and roundings add up over a few layers.
    assert rounded == pytest.approx(theirs["all_boundaries"]["brier"], rel=0.05)
    assert rounded != theirs["all_boundaries"]["brier"]
    ours = json.loads((evaluated.out / "evaluation.json").read_text())
    longest = max(len(t.prompt_ids) + len(t.think_ids) + 1 + len(t.answer_ids) for t in traces)
    assert longest > read_meta(evaluated.data).length
    assert ours["n"] == theirs["n"] == 40
    for key in ("top1", "acceptance_length"):
        assert ours[key] == theirs[key], key
    for name in NAMES:
        # float32 in another order
        assert ours["signal_loss"][name] == pytest.approx(theirs["signal_loss"][name], rel=1e-4)
    assert ours["all_boundaries"]["brier"] == pytest.approx(theirs["all_boundaries"]["brier"], rel=1e-4)


def test_the_best_checkpoint_is_kept_and_converted(evaluated: TrainConfig, tmp_path: Path) -> None:
    scores = {
        line["step"]: line["evaluation"]["all_boundaries"]["brier"]
        for line in lines(evaluated.out)
        if "evaluation" in line
    }
    best = min(scores, key=lambda step: scores[step])
    step, params = restore_params(evaluated.out, "best")
    assert step == best
    convert(ConvertConfig(run=evaluated.out, which="best", out=tmp_path / "draft"))
    _, tensors = read_draft(tmp_path / "draft")
    selection = read_policy(tmp_path / "draft").selection
    assert selection is not None  # so that no calibration on these prompts is taken for one
    assert evaluated.eval_traces is not None
    assert selection.prompts == tuple(sorted({t.prompt_hash[:16] for t in read_labelled(evaluated.eval_traces)}))
    assert selection.by == "brier"
    np.testing.assert_array_equal(tensors["lm_head.weight"], np.asarray(params["lm_head"]["kernel"]).T)


def test_the_best_of_a_run_that_goes_on_by_another_figure(evaluated: TrainConfig, tmp_path: Path) -> None:
    """It says by what it was chosen, not by what the next one will be."""
    run = Path(shutil.copytree(evaluated.out, tmp_path / "run"))
    start = read_start(run)
    assert start.selection is not None
    save_start(run, start._replace(selection=start.selection.model_copy(update={"by": "auroc"})))
    convert(ConvertConfig(run=run, which="best", out=tmp_path / "before"))
    train(changed(evaluated, out=run, best_by="auroc", profile_steps=None))  # is finished, and judged again
    assert restore_params(run, "best")[0] == 8
    convert(ConvertConfig(run=run, which="best", out=tmp_path / "behind"))
    chosen_by = [read_policy(tmp_path / name).selection for name in ("before", "behind")]
    assert [selection and selection.by for selection in chosen_by] == ["brier", "auroc"]


def test_a_run_whose_folder_was_taken_saves_no_more(
    evaluated: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(evaluated.out, tmp_path / "run"))
    check = Mock(side_effect=ConfigError("another one has it"))
    monkeypatch.setattr(module, "alone_in", lambda _: nullcontext(check))
    with pytest.raises(ConfigError, match="another one has it"):
        train(changed(evaluated, out=run, best_by="auroc", profile_steps=None))  # of which any is the best so far
    assert restore_params(run, "best")[0] == restore_params(evaluated.out, "best")[0]


def test_the_planned_steps_are_profiled(evaluated: TrainConfig) -> None:
    assert list((evaluated.out / "profile").rglob("*.xplane.pb"))


def test_a_finished_run_is_started_again_in_vain(evaluated: TrainConfig) -> None:
    before = (evaluated.out / "metrics.jsonl").read_text()
    train(changed(evaluated, profile_steps=None))
    assert (evaluated.out / "metrics.jsonl").read_text() == before
    assert status(evaluated.out) == "finished"


def test_the_draft_of_the_start_is_let_go(evaluated: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies whole on the first chip of each process, and what it was for is done before the first step."""
    start, run, drafts, there = module.start, module.Loop.run, [], []

    def noted(*arguments: Any) -> Any:
        found = start(*arguments)
        drafts.append(weakref.ref(found[1]))
        return found

    def observed(self: Any, *arguments: Any) -> Any:
        gc.collect()
        there.extend(draft() is not None for draft in drafts)
        return run(self, *arguments)

    monkeypatch.setattr(module, "start", noted)
    monkeypatch.setattr(module.Loop, "run", observed)
    train(evaluated)
    assert there == [False]


def poison(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """A NaN in the labels of one row of one step's batch, whoever reads it."""

    def poisoned(read: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self, step, *rows):
            batch = read(self, step, *rows)
            if step == at:
                batch["signal_labels"][2, 10, 1] = np.nan
            return batch

        return wrapped

    for name in ("read", "whole"):
        monkeypatch.setattr(module.Batches, name, poisoned(getattr(module.Batches, name)))


def test_a_nan_stops_the_run_and_leaves_its_batch(
    recipe: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    poison(monkeypatch, at=5)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    with pytest.raises(SystemExit) as exit_:
        cli.run("train", [str(path)])
    assert exit_.value.code == 78  # for which jobset.yaml restarts nothing
    assert "signal_labels of row 2 is not finite" in capsys.readouterr().err
    assert status(recipe.out) == "stopped"

    batch = read_example((recipe.out / "nonfinite" / "step-00000005.npz").read_bytes())
    assert set(batch) == set(FIELDS)
    assert batch["tokens"].shape == (recipe.batch_size, 128)
    assert np.argwhere(np.isnan(batch["signal_labels"])).tolist() == [[2, 10, 1]]

    step, params = restore_params(recipe.out)
    assert step == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert [line["step"] for line in lines(recipe.out)] == [1, 2, 3, 4]

    # A second attempt that lets one update be skipped goes on from there, and nothing of the NaN is left.
    train(changed(recipe, max_nonfinite=1))
    assert status(recipe.out) == "finished"
    assert [line["step"] for line in lines(recipe.out)] == [1, 2, 3, 4, 6, 7, 8]
    assert all(np.isfinite(line["loss"]) for line in lines(recipe.out))
    assert lines(recipe.out)[-1]["learning_rate"]["muon"] == schedule(recipe.optimizer, 0.02, 8)(6)  # the 7th update


def test_a_nan_is_said_where_the_status_cannot_be_written(
    recipe: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The disk's error took the place of the NaN's, so the run was started again."""
    write = module.write_status

    def full(run: Path, status: Status, *rest: Any) -> None:
        if status == "stopped":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(run, status, *rest)

    monkeypatch.setattr(module, "write_status", full)
    monkeypatch.setattr(module.Loop, "run", Mock(side_effect=NotFiniteError("step 5: loss nan")))
    with pytest.raises(NotFiniteError, match="step 5: loss nan"):
        train(recipe)
    assert "status.json: does not say that the run was stopped: [Errno 28] No space left" in capsys.readouterr().err


def test_sigterm_saves_and_the_run_goes_on(recipe: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Metrics.advance

    def terminated(self, step, metrics):
        advance(self, step, metrics)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(module.Metrics, "advance", terminated)
    train(recipe)
    assert status(recipe.out) == "preempted"
    saved = restore_params(recipe.out)[0]
    assert saved in (4, 5)  # numbers are looked at one step late
    assert signal.getsignal(signal.SIGTERM) is before

    # Lines of steps that a kill has cut off, or that come again, do not stay.
    with (recipe.out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 7, "loss": 0}) + '\n{"step": 8, "lo')
    monkeypatch.setattr(module.Metrics, "advance", advance)
    train(recipe)
    assert status(recipe.out) == "finished"
    assert [line["step"] for line in lines(recipe.out)] == list(range(1, 9))
    assert all(line["loss"] > 0 for line in lines(recipe.out))


def test_the_preemption_service_is_asked_with_a_new_number_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says yes to one number alone: the next one of all processes, when the notice came. It may come before any."""
    service = Mock(side_effect=lambda number: number == 3)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster.multihost_utils, "reached_preemption_sync_point", service)
    preemption = cluster.Preemption()
    assert [preemption.reached() for _ in range(5)] == [False, False, True, True, True]
    assert [call.args for call in service.call_args_list] == [(1,), (2,), (3,)]


def evaluations(run: Path) -> dict[int, dict]:
    return {line["step"]: line["evaluation"] for line in lines(run) if "evaluation" in line}


def test_an_evaluation_that_a_kill_cut_short_is_made_up_for(
    evaluated: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = changed(evaluated, out=tmp_path / "run", profile_steps=None)

    def killed(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.HeldOut, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert restore_params(config.out)[0] == 4
    assert read_status(config.out) == ("running", 4, 8)  # not where its process began
    assert not evaluations(config.out)
    train(config)
    assert evaluations(config.out) == evaluations(evaluated.out)
    assert restore_params(config.out, "best")[0] == restore_params(evaluated.out, "best")[0]
    written = config.out / "metrics.jsonl"
    assert [row["step"] for row in training_rows(written, read_lines(written)[0])] == [3, 4, 6, 8]


def test_a_step_that_was_preempted_before_the_end_of_its_evaluation_is_evaluated_later(
    evaluated: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, place = changed(evaluated, out=tmp_path / "run", profile_steps=None), held_out.place
    with monkeypatch.context() as patch:
        asked = itertools.count(1)
        patch.setattr(module.Preemption, "reached", lambda self: next(asked) == 4)
        train(config)
    assert status(config.out) == "preempted"
    assert not evaluations(config.out)

    def terminated(behind: set[int]) -> int:
        """Go on to a notice at the first batch of the evaluation behind these; how many batches of it there were."""
        batches = 0

        def noticed(*arguments: Any) -> Any:
            nonlocal batches
            if evaluations(config.out).keys() == behind:
                batches += 1
                os.kill(os.getpid(), signal.SIGTERM)
            return place(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(held_out, "place", noticed)
            train(config)
        return batches

    for behind, last in (set(), 4), ({4}, 8):  # one that is made up for, and that of the last step
        assert terminated(behind) == 1
        assert read_status(config.out) == ("preempted", last, 8)
        assert evaluations(config.out).keys() == behind
        assert restore_params(config.out)[0] == last
    train(config)
    assert status(config.out) == "finished"
    assert evaluations(config.out) == evaluations(evaluated.out)
    before = (config.out / "metrics.jsonl").read_text()
    train(config)  # what is evaluated is not again
    assert (config.out / "metrics.jsonl").read_text() == before


def test_wandb_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = SimpleNamespace(log=lambda numbers, step: calls.append((step, numbers)), finish=lambda: calls.append("end"))
    ids = []
    stub = SimpleNamespace(
        util=SimpleNamespace(generate_id=lambda: "abc"), init=lambda **given: ids.append(given["id"]) or run
    )
    monkeypatch.setitem(sys.modules, "wandb", stub)
    for _ in range(2):
        with Metrics(tmp_path, total=8, start=0, wandb="drafts") as metrics:
            metrics.write({"step": 3, "evaluation": {"top1": [0.5]}})
    assert calls == [(3, {"evaluation/top1/0": 0.5}), "end"] * 2
    assert ids == ["abc", "abc"]


def test_wandb_without_a_key_ends_every_process_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a traceback of the first process alone, and jobset.yaml started it again a hundred times."""
    base = type("Error", (Exception,), {})
    errors = {name: type(name, (base,), {}) for name in ("UsageError", "AuthenticationError", "CommError")}
    stub = SimpleNamespace(
        util=SimpleNamespace(generate_id=lambda: "abc"), errors=SimpleNamespace(Error=base, **errors), init=Mock()
    )
    monkeypatch.setitem(sys.modules, "wandb", stub)
    for name, lasting in (("UsageError", True), ("AuthenticationError", True), ("CommError", False)):
        stub.init.side_effect = errors[name]("api_key not\nconfigured")
        with pytest.raises(ConfigError, match=r"^wandb=drafts: .*api_key not configured") as refusal:
            Metrics(tmp_path, total=8, start=0, wandb="drafts")
        assert lasts(refusal.value) == lasting
        assert ("WANDB_API_KEY" in str(refusal.value)) == lasting
    told = Mock(side_effect=["no key", ""])
    monkeypatch.setattr("jax_specexit.training.metrics.told_by_first", told)
    with pytest.raises(ConfigError, match=r"^wandb=drafts: no key; expected an API key"):
        Metrics(tmp_path, total=8, start=0, wandb="drafts", silent=True)
    assert [call.args for call in told.call_args_list] == [("",), ("",)]


def test_a_run_is_not_evaluated_on_more_prompts_than_can_be_named(
    evaluated: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "MOST_PROMPTS", 39)
    again = evaluated.model_copy(update={"out": tmp_path / "run"})
    with pytest.raises(ConfigError, match=r"holds 40 prompts, expected at most 39: choose fewer by evaluate_n"):
        train(again)
    assert not (tmp_path / "run").exists()


def test_with_what_chose_its_draft_earlier_a_run_names_no_more_prompts(
    evaluated: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`convert` writes all of them into one policy.json; it failed there, behind the whole run."""
    monkeypatch.setattr(held_out, "MOST_PROMPTS", 45)
    again = changed(evaluated, out=Path(shutil.copytree(evaluated.out, tmp_path / "run")), profile_steps=None)
    start = read_start(again.out)
    assert start.selection is not None
    earlier = Selection(by="brier", prompts=tuple(f"{i:016x}" for i in range(6)))
    both = Selection(by="brier", prompts=(*start.selection.prompts, *earlier.prompts))
    for fields in ({"before": earlier}, {"selection": both}):
        save_start(again.out, start._replace(**fields))
        with pytest.raises(ConfigError, match=r"those that chose .* are 46, expected at most 45: choose fewer"):
            train(again)
    save_start(again.out, start._replace(before=Selection(by="brier", prompts=earlier.prompts[1:])))
    train(again)


def test_a_run_is_not_evaluated_on_prompts_that_it_was_trained_on(
    evaluated: TrainConfig, packed: Path, tmp_path: Path
) -> None:
    from jax_specexit.evaluation.evaluate import evaluate

    config = EvaluateConfig(run=evaluated.out, traces=packed.parent / "trained", out=tmp_path / "evaluation.json")
    with pytest.raises(OverlapError, match=r"40 of 40 prompts were trained on according to .*run/prompts\.npy"):
        evaluate(config)
    assert not config.out.exists()


def test_data_that_was_packed_again_does_not_continue_a_run(evaluated: TrainConfig, tmp_path: Path) -> None:
    data = Path(shutil.copytree(evaluated.data, tmp_path / "packed"))
    train(changed(evaluated, data=data, profile_steps=None))  # the same data elsewhere is the same data
    meta = json.loads((data / "meta.json").read_text())
    (data / "meta.json").write_text(json.dumps(meta | {"data_sha256": "0" * 64}))
    with pytest.raises(ConfigError, match="its position in the data means nothing there"):
        train(changed(evaluated, data=data))


def test_a_length_checks_the_data_and_is_no_other_recipe(evaluated: TrainConfig) -> None:
    assert evaluated.length is None
    check_folder(changed(evaluated, length=64))
    with pytest.raises(ConfigError, match=r"length=128, but the rows in .* have 64 tokens"):
        train(changed(evaluated, length=128))
