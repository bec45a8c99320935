"""Traces that are replayed a block at a time give, to the last bit, what all of them at once give, and few are held."""

import json
import weakref
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specexit.data import traces as traces_module
from specexit.data.outlines import outlines
from specexit.data.rows import BareTrace, can_judge, first_trial, free_trials
from specexit.data.scores import Scores, key_of, open_scores, write_scores
from specexit.data.traces import read_bare, write_traces
from specexit.drafts.policy import TRAFFIC_LEVELS
from specexit.drafts.tensors import weights_hash
from specexit.method import judged as judged_module
from specexit.method import simulate as simulate_module
from specexit.method import tally as tally_module
from specexit.method.calibrate import calibrate
from specexit.method.decision import Policy
from specexit.method.judged import judge
from specexit.method.policies import METHODS, MethodError, load_methods, play_policies
from specexit.method.replay import Replay
from specexit.method.sample import Sample
from specexit.method.simulate import simulate
from specexit.method.stored import replays
from specexit.method.sums import columns_of, sums_of
from specexit.method.tally import Tally
from specexit.schemas.calibrate import CalibrateConfig
from specexit.schemas.simulate import SimulateConfig

POLICIES = [
    *(Policy(thresholds={"validity": tau}, early={"validity": tau / 2}) for tau in (0.9, 0.6, 0.3, 0.1)),
    Policy(thresholds={"confidence": 0.5}, patience=2, max_thinking_tokens=20),
    Policy(thresholds={"remaining": 200}, smoothing="ewma", alpha=0.5),
    Policy(thresholds={"validity": 0.4}, smoothing="round"),
]
BLOCKS = [1, 7 * 400, 1 << 22]
"""Tokens at once that make blocks of one trace, of about seven, and of all."""


def drawn(make_trace, rng, n):
    """Traces of every kind, some of one prompt, some that cannot judge, and their signals."""
    traces, signals = [], {}
    for i in range(n):
        n_think = int(rng.integers(1, 40))
        ends = np.flatnonzero(rng.random(n_think) < 0.3) + 1
        states = rng.choice(["agrees", "agrees", "differs", "undecided", "untried"], len(ends)).tolist()
        agrees = [state == "agrees" or (state == "untried" and rng.random() < 0.5) for state in states]
        tried = [j for j, state in enumerate(states) if state in ("agrees", "differs")]
        free = [{"boundary": j, "answer": "7", "same": bool(rng.random() < 0.9), "tokens": 3} for j in tried[:2]]
        known, prompt = rng.random() < 0.9, int(rng.integers(n))
        traces.append(
            make_trace(
                id=f"t{i}",
                sample=int(rng.integers(3)),
                prompt_ids=[prompt],
                think_ids=rng.integers(5, 9, n_think).tolist(),
                boundaries=ends.tolist(),
                boundary_answers=["7" if same else str(rng.integers(6, 9)) for same in agrees],
                boundary_agrees=agrees,
                boundary_state=states,
                boundary_confidence=rng.random(len(ends)).astype(np.float32).tolist(),
                boundary_trial_tokens=rng.integers(0, 9, len(ends)).tolist(),
                reference="7" if known else None,
                correct=True if known else None,
                task=f"task {prompt % 2}",
                finish_reason="stop" if rng.random() < 0.9 else "length",
                trial=json.dumps({"text": "x"} | ({"free": free} if rng.random() < 0.5 else {})),
            )
        )
        signals[key_of(traces[-1])] = rng.random((n_think, 4), np.float32) * np.array([1, 1, 400, 1], np.float32)
    return traces, signals


@pytest.fixture(scope="module")
def files(make_trace, tmp_path_factory, write_random_draft):
    """``files(seed, n)``: paths of drawn traces, of their scores in another order, and of a draft."""
    folder = tmp_path_factory.mktemp("stored")
    draft = write_random_draft(folder / "draft", "draft")

    def make(seed, n):
        rng = np.random.default_rng(seed)
        traces, signals = drawn(make_trace, rng, n)
        write_traces(folder / "traces.parquet", traces)
        shuffled = {key: signals[key] for key in rng.permutation(list(signals)).tolist()}
        write_scores(folder / "scores.parquet", Scores("draft", weights_hash(draft), shuffled))
        return {"traces": folder / "traces.parquet", "scores": folder / "scores.parquet", "draft": draft}

    return make


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.sampled_from(BLOCKS), st.booleans())
def test_blocks_are_judged_as_all_traces_at_once(files, seed, tokens, grouped):
    """Against the definition, prompt by prompt."""
    paths = files(seed, 70)  # more than a row group of the scores
    traces = read_bare(paths["traces"])
    able = [trace for trace in traces if can_judge(trace)]
    whole = Replay(able, open_scores(paths["scores"]).of(able))
    sample = Sample(outlines(traces), grouped=grouped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces_module, "BLOCK_TOKENS", tokens)
        blocks = list(replays(paths["traces"], open_scores(paths["scores"])))
    assert (len(blocks) == len(able)) == (tokens == 1)
    for policy, found in zip(POLICIES, judge(sample, blocks, POLICIES, "answer_changed"), strict=True):
        outcome = whole.play(policy)
        assert found.sums == sums_of(whole, outcome)
        expected = by_prompt(able, outcome, lambda trace: trace.group or trace.task if grouped else "")
        assert {name: vars(counts) for name, counts in found.groups.items()} == expected


def test_errors_of_many_groups_are_counted_at_once(monkeypatch):
    """`calibrate groups=true` went over a block once for each of a thousand groups and each number of samples."""
    rng, shape, n = np.random.default_rng(1), (3, 50), 400
    errors, groups, sizes = rng.random((3, n)) < 0.3, rng.integers(50, size=n), rng.integers(1, 4, size=n)
    losses, of = judged_module._Losses(shape), judged_module._Losses.of
    asked = []
    monkeypatch.setattr(judged_module._Losses, "of", lambda self, size: asked.append(size) or of(self, size))
    losses.add(errors, groups, sizes)
    assert asked == [1, 2, 3]
    slowly = [[(errors[i, groups == group] / sizes[groups == group]).sum() for group in range(50)] for i in range(3)]
    np.testing.assert_allclose(losses.counted(), slowly)


def by_prompt(traces, outcome, group_of):
    """What `Counts` says, of each group: a prompt errs as its traces do on the average; it was asked where an answer
    in full was written at the boundary that stands for a trace's exit, and contradicted where a sound exit was; in as
    many traces as the prompt with fewest has. An exit where nothing was tried errs."""
    groups = {}
    for i, trace in enumerate(traces):
        prompts = groups.setdefault(group_of(trace), {})
        changed, asked, contradicted = prompts.setdefault(trace.prompt_hash, ([], [], []))
        changed.append(bool(outcome.changed[i] or outcome.inferred[i]))
        sound = bool(outcome.exited[i] and outcome.kept[i] < trace.n_think and not changed[-1])
        stands = trace.boundaries.index(outcome.kept[i]) if sound else first_trial(trace.boundary_state)
        here = [free for free in free_trials(trace) if free.boundary == stands]
        asked.append(bool(here))
        contradicted.append(sound and any(free.same is not True for free in here))
    fewest = min(len(changed) for prompts in groups.values() for changed, _, _ in prompts.values())
    return {
        name: {
            "n": len(prompts),
            "errors": pytest.approx(sum(Fraction(sum(changed), len(changed)) for changed, _, _ in prompts.values())),
            "asked": sum(any(asked[:fewest]) for _, asked, _ in prompts.values()),
            "contradicted": sum(any(contradicted[:fewest]) for _, _, contradicted in prompts.values()),
        }
        for name, prompts in groups.items()
    }


@pytest.fixture
def few_methods(monkeypatch):
    """Simulations without the many settings of a sweep."""
    kept = {name: METHODS[name] for name in ("paper", "boundary", "stability", "deer")}
    monkeypatch.setattr(simulate_module, "load_methods", lambda paths: kept | load_mine(paths))


def load_mine(paths):
    return {name: method for name, method in load_methods(paths).items() if name not in METHODS}


@pytest.mark.parametrize("seed", [0, 1])
def test_commands_write_the_same_whatever_the_blocks(files, seed, monkeypatch, few_methods, tmp_path):
    paths, written = files(seed, 60), []
    for tokens in BLOCKS:
        monkeypatch.setattr(traces_module, "BLOCK_TOKENS", tokens)
        policy = calibrate(CalibrateConfig(**paths, epsilon=0.5, delta=0.2))
        config = SimulateConfig(traces=paths["traces"], scores=paths["scores"], out=tmp_path / "simulation.json")
        simulate(config)
        written.append((policy.points, policy.population, policy.traffic, config.out.read_bytes()))
    assert written[0][0][0].certificate is not None
    assert written[0] == written[1] == written[2]


def test_traffic_is_that_of_all_boundaries_and_each_trace_counts_once(files):
    paths = files(3, 150)
    stored = calibrate(CalibrateConfig(**paths, epsilon=0.5, delta=0.2))
    traces = [t for t in read_bare(paths["traces"]) if t.finish_reason == "stop" and t.boundaries]
    counts = np.array([len(trace.boundaries) for trace in traces], np.float64)
    expected = np.quantile(counts, TRAFFIC_LEVELS)
    assert stored.traffic.boundaries == tuple(round(float(value), 4) for value in expected)
    of_each = [Counter(trace.split_ids) for trace in traces]
    shares = {t: np.mean([count[t] / count.total() for count in of_each]) for count in of_each for t in count}
    assert stored.traffic.split_shares == pytest.approx({str(t): share for t, share in shares.items()}, abs=1e-6)


def test_each_of_many_tasks_is_summed_as_if_it_were_alone(make_trace, monkeypatch):
    """Every setting used to be summed once for each of them, 0.18 s a task."""
    traces, signals = drawn(make_trace, np.random.default_rng(3), 60)
    able, n_tasks, sums = [trace for trace in traces if can_judge(trace)], 7, []

    def replay_of(some):
        return Replay(some, [signals[key_of(trace)] for trace in some])

    monkeypatch.setattr(tally_module, "columns_of", lambda *given: sums.append(given) or columns_of(*given))
    tally = Tally("mine", n_tasks)
    for start in range(0, len(able), 20):
        block = replay_of(able[start : start + 20])
        tasks = np.arange(start, start + len(block.traces)) ** 2 % n_tasks  # 3, 5 and 6 have none
        tally.add(block, play_policies(block, POLICIES, str), tasks)
    assert len(sums) == len(POLICIES) * -(-len(able) // 20)
    for task in (*range(n_tasks), None):
        alone = replay_of([trace for i, trace in enumerate(able) if task in (None, i**2 % n_tasks)])
        expected = [(sums_of(alone, alone.play(policy)), policy, str(policy)) for policy in POLICIES]
        assert list(tally.of(task)) == expected


@pytest.mark.parametrize("command", ["calibrate", "simulate"])
def test_few_traces_are_held_at_once(files, command, monkeypatch, few_methods, tmp_path):
    alive, most = weakref.WeakSet(), 0

    class Watched(BareTrace):
        def __init__(self, **row):
            nonlocal most
            super().__init__(**row)
            alive.add(self)
            most = max(most, len(alive))

        __hash__ = object.__hash__

    paths = files(4, 150)
    monkeypatch.setattr(traces_module, "BareTrace", Watched)
    monkeypatch.setattr(traces_module, "BLOCK_TOKENS", BLOCKS[1] // 4)
    if command == "calibrate":
        calibrate(CalibrateConfig(**paths, epsilon=0.5, delta=0.2))
    else:
        paths.pop("draft")
        simulate(SimulateConfig(**paths, out=tmp_path / "simulation.json"))
    assert 3 < most < 40  # of 150


DEPENDS = """
from specexit.method.decision import Policy
from specexit.method.judged import judge
from specexit.method.policies import Method, play_policies

METHOD = Method(
    "half",
    "exits behind half of the longest trace",
    lambda replay, config: play_policies(
        replay, [Policy(thresholds={}, min_thinking_tokens=SIZE // 2)], lambda policy: str(policy.min_thinking_tokens)
    ),
)
"""


def test_settings_that_differ_from_block_to_block_are_refused(files, monkeypatch, few_methods, tmp_path):
    paths = files(5, 20)
    monkeypatch.setattr(traces_module, "BLOCK_TOKENS", 1)
    (tmp_path / "half.py").write_text(DEPENDS.replace("SIZE", "int(replay.n_think.max())"))
    config = SimulateConfig(
        traces=paths["traces"], scores=paths["scores"], out=tmp_path / "out.json", methods=(tmp_path / "half.py",)
    )
    with pytest.raises(MethodError, match=r"method half: other settings for one block .* `replay\.largest` alone"):
        simulate(config)
    (tmp_path / "half.py").write_text(DEPENDS.replace("SIZE", "replay.largest.n_think"))
    assert len(simulate(config).curves["half"]) == 1
