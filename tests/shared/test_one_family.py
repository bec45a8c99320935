"""What is swept is what is certified: a curve's point at a threshold is the policy that `calibrate` writes for it."""

import json

import numpy as np
import pytest

from specexit.bench import ablate as ablate_module
from specexit.bench.ablate import ablate
from specexit.bench.certificate import policies_of
from specexit.data.scores import Scores, key_of, read_scores, write_scores
from specexit.data.traces import read_traces
from specexit.drafts.tensors import weights_hash
from specexit.method.calibrate import calibrate, grid
from specexit.method.policies import METHODS
from specexit.method.replay import Replay
from specexit.method.simulate import simulate, summarise
from specexit.schemas.ablate import AblateConfig
from specexit.schemas.calibrate import CalibrateConfig
from specexit.schemas.simulate import SimulateConfig

N = 120


@pytest.fixture
def paths(setting):
    """Behind 12 tokens all look settled; what tells the half that is not is that 8 tokens before they did not either.
    One in ten is wrong there at a validity of 0.6."""
    settled = np.arange(N) % 2 == 0
    wrong = np.arange(N) % 10 == 0
    found = setting(np.zeros(N), settled & ~wrong, think_ids=list(range(20, 50)), boundaries=[12, 20, 30])
    signals = {}
    for i, trace in enumerate(read_traces(found["traces"])):
        values = np.full((30, 4), 0.01, np.float32)
        values[[11, 19, 29], 3] = 0.6 if wrong[i] else 0.99
        values[3, 3] = 0.6 if settled[i] else 0.01
        signals[key_of(trace)] = values
    write_scores(found["scores"], Scores("draft", weights_hash(found["draft"]), signals))
    return found


def test_the_curve_at_the_certified_threshold_is_the_certified_policy_trace_by_trace(paths, tmp_path):
    certified = calibrate(CalibrateConfig(**paths)).point().policy
    tau = certified.thresholds["validity"]
    data = {name: paths[name] for name in ("traces", "scores")}
    config = SimulateConfig(**data, out=tmp_path / "simulation.json")
    traces = read_traces(paths["traces"])
    replay = Replay(traces, read_scores(paths["scores"]).of(traces))
    served = replay.play(certified)
    (swept,) = [one for one in METHODS["validity"].play(replay, config) if one.policy.thresholds["validity"] == tau]
    for name in vars(served):
        np.testing.assert_array_equal(getattr(swept.outcome, name), getattr(served, name), err_msg=name)
    # Without the early threshold half of the traces would end elsewhere.
    bare = replay.play(certified.model_copy(update={"early": {}}))
    assert (bare.kept != served.kept).sum() == N // 2

    expected = summarise(replay, certified, served)
    (point,) = [one for one in simulate(config).thresholds if one.policy == certified]
    assert point.model_copy(update={"setting": ""}) == expected
    written = json.loads(config.out.read_text())["thresholds"]
    assert [one["policy"]["thresholds"]["validity"] for one in written] == sorted(
        (one["policy"]["thresholds"]["validity"] for one in written), reverse=True
    )
    assert len(written) == 189


def test_what_is_ablated_and_drawn_from_is_the_family_that_is_certified(paths, tmp_path, monkeypatch):
    policies = grid(CalibrateConfig(**paths))
    assert list(policies_of("draft")) == policies
    assert {policy.early["validity"] for policy in policies} == {
        round(policy.thresholds["validity"] / 2, 6) for policy in policies
    }
    assert not any(policy.early for policy in policies_of("fc"))
    monkeypatch.setattr(ablate_module, "VALIDITY_GRID", (0.9, 0.7, 0.5))
    found = ablate(AblateConfig(traces=paths["traces"], scores={"draft": paths["scores"]}, out=tmp_path / "out"))
    best = {variant.name: variant.best["0"] for variant in found["early"].variants}
    assert best["0.5 of it"].net_cut == pytest.approx(1 - (0.5 * 20 + 0.1 * 30 + 0.4 * 12) / 30)
    assert best["every boundary judged"] is None  # no threshold tells the unsettled half from the others
    for name in ("signals", "smoothing", "patience", "splits"):
        assert found[name].variants[0].best["0"] == best["0.5 of it"], name


def test_source_fc_is_judged_at_every_boundary(paths, tmp_path):
    scores = read_scores(paths["scores"])
    write_scores(paths["scores"], Scores("fc", scores.draft_blake3, scores.signals))
    data = {name: paths[name] for name in ("traces", "scores")}
    found = simulate(SimulateConfig(**data, out=tmp_path / "simulation.json"))
    assert [point.policy for point in found.thresholds] == list(policies_of("fc"))
