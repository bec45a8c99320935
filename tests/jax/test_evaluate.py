"""The numbers of an evaluation, each against a definition that shares no code with it. A few seconds."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jax_specexit.evaluation import evaluate as module
from jax_specexit.evaluation import judging, scoring
from jax_specexit.evaluation.evaluate import ranking_words, show, started_backend, table
from jax_specexit.evaluation.judging import DEFINITIONS, Evaluation, Ranking, judge
from jax_specexit.evaluation.scoring import BATCH_ROWS, BATCH_TOKENS, Scored, batches, sequence
from jax_specexit.model.draft import Draft
from jax_specexit.model.target import Target
from jax_specexit.planning.aot import lower_step, shapes_of
from jax_specexit.training.losses import signal_losses
from specexit.config import ConfigError, save_run
from specexit.data.outlines import outlines
from specexit.data.traces import TOKENIZER, WEIGHTS, LabelledTrace, TraceError, write_traces
from specexit.drafts.config import DraftConfig, SpecExitBlock
from specexit.errors import InputError
from specexit.method.labels import token_labels
from specexit.method.signals import NAMES, SIGNALS
from specexit.schemas.evaluate import EvaluateConfig
from specexit.schemas.train import DraftShapeConfig
from tests.jax.test_work import TARGET, recipe


def trace(n_prompt: int, n_think: int, n_answer: int) -> LabelledTrace:
    boundaries = list(range(2, n_think, 3)) or [n_think]
    agrees = [i >= len(boundaries) // 2 for i in range(len(boundaries))]
    return LabelledTrace(
        id="0",
        prompt="",
        prompt_ids=[0] * n_prompt,
        think_ids=[0] * n_think,
        answer_ids=[0] * n_answer,
        answer="1",
        reference="1",
        correct=True,
        finish_reason="stop",
        boundaries=boundaries,
        boundary_answers=["1" if hit else "2" for hit in agrees],
        boundary_agrees=agrees,
        boundary_confidence=[0.5] * len(boundaries),
        target="small",
        sampling="{}",
        seed=0,
        exit_earliest=boundaries[agrees.index(True)],
        exit_stable=boundaries[agrees.index(True)],
        hard_boundary=None,
    )


def scored(rng: np.random.Generator, ttt_steps: int, n_prompt: int, n_think: int, n_answer: int) -> Scored:
    n = n_prompt + n_think + 1 + n_answer
    raw = rng.normal(size=(n_think, len(SIGNALS))).astype(np.float32)
    return Scored(trace(n_prompt, n_think, n_answer), raw, rng.random((ttt_steps, n)) < 0.7)


def decode(one: Scored) -> tuple[int, int]:
    """(tokens from speculative steps, steps): a decoder that knows the text and the draft's hits, token by token."""
    text = list(range(one.hits.shape[1]))
    written = text[: len(one.trace.prompt_ids) + 1]  # the prompt's own pass gives one token
    tokens = steps = 0
    while len(written) < len(text):
        row = len(written) - 2
        steps += 1
        for k in range(len(one.hits)):
            if len(written) == len(text) or not one.hits[k, row]:
                break
            written.append(text[len(written)])
            tokens += 1
        tokens += 1  # the bonus token, counted where the text has just ended as well
        if len(written) < len(text):
            written.append(text[len(written)])
    return tokens, steps


@given(seed=st.integers(0, 10_000), ttt_steps=st.integers(1, 5), n=st.integers(1, 3))
def test_acceptance_length_is_that_of_decoding_token_by_token(seed: int, ttt_steps: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    many = [scored(rng, ttt_steps, 3, int(rng.integers(4, 30)), int(rng.integers(0, 4))) for _ in range(n)]
    tokens, steps = np.sum([decode(one) for one in many], axis=0)
    accepted, taken = np.sum([judging.accepted_of(one) for one in many], axis=0)
    assert 1 + accepted / taken == pytest.approx(tokens / steps)


def test_signal_losses_are_those_of_training() -> None:
    one = scored(np.random.default_rng(0), 2, 3, 24, 2)
    labelled = one.trace
    assert isinstance(labelled, LabelledTrace)
    judged = (labelled.boundaries, labelled.boundary_agrees, labelled.boundary_confidence)
    labels, mask = token_labels(*judged, 24, labelled.exit_earliest)
    ours = judge([one], 1, "earliest").signal_loss
    theirs = signal_losses(jnp.asarray(one.raw[None]), jnp.asarray(labels[None]), jnp.asarray(mask[None], jnp.float32))
    # float32 against float64
    np.testing.assert_allclose([ours[name] for name in NAMES], theirs, rtol=1e-5)


@pytest.mark.parametrize("state", ["undecided", "untried"])
def test_undecided_trials_and_none_in_front_of_the_first_have_no_label(state: str) -> None:
    """As in training: the tokens of such a step are left out, whatever their trial seemed to say."""
    one = scored(np.random.default_rng(0), 2, 3, 24, 2)
    assert isinstance(one.trace, LabelledTrace)
    states = [state, *one.trace.boundary_state[1:]]
    undecided = judge([replace(one, trace=replace(one.trace, boundary_state=states))], 1, "earliest").signal_loss
    first = one.trace.boundaries[0]
    value = one.signals[first:, NAMES.index("validity")].astype(np.float64)
    step = np.searchsorted(one.trace.boundaries, np.arange(first + 1, 25))
    known = step < len(one.trace.boundaries)
    truth = np.array(one.trace.boundary_agrees)[step[known]]
    expected = -np.mean(np.log(np.where(truth, value[known], 1 - value[known])))
    assert undecided["validity"] == pytest.approx(expected)
    assert undecided["progress"] == judge([one], 1, "earliest").signal_loss["progress"]


def test_undecided_trials_are_no_negatives_of_the_ranking() -> None:
    """What a trial that was cut off would have said is not known, so the metrics of a checkpoint leave it out."""
    one = scored(np.random.default_rng(0), 2, 3, 24, 2)
    assert isinstance(one.trace, LabelledTrace)
    n = len(one.trace.boundaries)
    states = ["undecided", *one.trace.boundary_state[1:]]
    found = judge([replace(one, trace=replace(one.trace, boundary_state=states, hard_boundary=0))], 1, "earliest")
    assert found.all_boundaries.n == n - 1
    assert found.all_boundaries.valid == pytest.approx(sum(one.trace.boundary_agrees) / (n - 1))
    assert found.hard_boundaries.n == 0
    nothing = replace(one.trace, boundary_state=["undecided"] * n)
    assert judge([replace(one, trace=nothing)], 1, "earliest").all_boundaries.n == 0
    in_front = replace(one.trace, boundary_state=["untried", "untried", *one.trace.boundary_state[2:]])
    assert judge([replace(one, trace=in_front)], 1, "earliest").all_boundaries.n == n - 2


@pytest.mark.parametrize(
    ("dtype", "why"),
    [("float16", "float16 overflows above 65,504, .*: take bfloat16 or float32$"), ("bfloat16", "weights hold NaN")],
)
def test_a_signal_that_is_no_number_is_told_with_its_trace(
    dtype: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a ValueError of the ranking, behind the last trace, which named nothing."""
    raw, models = np.zeros((1, 128, len(SIGNALS)), np.float32), (Mock(spec=Draft, source="fc"), Mock(spec=Target))
    monkeypatch.setattr(scoring, "program", lambda *_: lambda *_: (raw, np.zeros((2, 1, 128), bool)))
    monkeypatch.setattr(scoring, "rows_at", lambda _: 1)

    def evaluated() -> Evaluation:
        done = scoring.score(*models, np.arange(4), [trace(3, 24, 2)], think_end=1, ttt_steps=2, dtype=dtype)
        return judge(done, 1, "earliest")

    assert evaluated().n == 1
    raw[0, 3 + 7, NAMES.index("validity")] = np.nan
    said = rf"^trace 0: the signals of 1 of its 24 thinking tokens, the first at 7, are NaN in dtype={dtype}, .*{why}"
    with pytest.raises(ConfigError, match=said):
        evaluated()


def test_traces_may_be_counted_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation lets go of its traces block by block; to the last bit it says what all of them at once say."""
    rng = np.random.default_rng(0)
    many = [scored(rng, 2, 3, int(rng.integers(8, 60)), 2) for _ in range(30)]
    many = [replace(one, trace=replace(one.trace, hard_boundary=int(rng.integers(2)) or None)) for one in many]
    found = []
    for boundaries in (1, 70, 10_000):
        monkeypatch.setattr(judging, "BLOCK_BOUNDARIES", boundaries)
        found.append(judge(many, 1, "earliest"))
    assert found[0] == found[1] == found[2]
    assert found[0].n == 30
    assert found[0].oracle_cut > 0
    assert found[0].hard_boundaries.n > 0


def test_signals_are_float32_on_tpus_too() -> None:
    """A CPU computes the same either way, so what is looked at is what the program asks for."""
    shape = DraftConfig(
        **DraftShapeConfig(
            hidden_size=8,
            intermediate_size=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            draft_vocab_size=10,
        ).model_dump(),
        target_hidden_size=8,
        vocab_size=20,
        eagle_aux_hidden_state_layer_ids=(1,),
        num_aux_hidden_states=1,
        target_num_hidden_layers=2,
        specexit=SpecExitBlock(target="t"),
    )
    draft = Draft(shape, rngs=nnx.Rngs(0))
    state = jax.ShapeDtypeStruct((1, 4, 8), jnp.bfloat16)
    text = jax.jit(lambda x: draft.signals(x, x)).lower(state).as_text()
    assert "precision = [HIGHEST, HIGHEST]" in text
    assert "tensor<8x4xf32>" in text


def test_a_run_in_float32_multiplies_in_float32_on_tpus_too() -> None:
    """Forward and backward passes, the optimizer, evaluations and measuring."""
    config = recipe(dtype="float32", eval_traces="nowhere")
    lowered = lower_step(config, shapes_of(config, TARGET), jax.devices()[:1], "float32")
    programs = {"step": lowered.step} | {name: lower() for name, lower in lowered.others.items() if name != "begin"}
    assert set(programs) == {"step", "measure", "evaluate"}
    for name, program in programs.items():
        products = [line for line in program.as_text().splitlines() if "stablehlo.dot_general" in line]
        assert products, name
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), name


def test_what_does_not_exist_is_null_and_never_the_best() -> None:
    nothing = Ranking(0, *[float("nan")] * 4)
    evaluation = Evaluation(1, 1, [0.5], 1.5, 1.5, dict.fromkeys(NAMES, 0.1), nothing, nothing, 0.5, {"0": 0.1})
    assert json.loads(json.dumps(evaluation.to_json(), allow_nan=False))["all_boundaries"]["auroc"] is None
    assert not evaluation.score("auroc") > float("-inf")


@pytest.mark.filterwarnings("error")
def test_traces_shorter_than_a_draft_say_nothing_of_its_tokens() -> None:
    """They have no row of which all TTT steps predict a token: no share of such rows was hit, and none was missed."""
    short, rng = [scored(np.random.default_rng(0), steps, 2, 2, 1) for steps in (5, 7)], np.random.default_rng(1)
    for one in short:
        found = json.loads(json.dumps(judge([one], 1, "earliest").to_json(), allow_nan=False))
        assert found["top1"] == [None] * len(one.hits)
    long = scored(rng, 7, 3, 24, 2)
    assert judge([short[1], long], 1, "earliest").top1 == judge([long], 1, "earliest").top1


def test_labels_without_any_cut_are_shown_as_such() -> None:
    ranking = Ranking(4, 0.0, float("nan"), 0.1, 0.1)
    evaluation = Evaluation(1, 1, [0.5], 1.5, 1.5, {}, ranking, ranking, oracle_cut=0.0, cut={"0": 0.0})
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table(evaluation))
    assert "the oracle saves nothing either" in shown.get()


def test_where_one_point_was_looked_for_the_oracle_is_at_least_what_is_said() -> None:
    """``boundaries=stable`` did not try the boundaries in front of it: the first right moment may lie there."""
    rng = np.random.default_rng(0)
    whole = [scored(rng, 2, 3, 30, 2) for _ in range(3)]
    states = [
        "untried" if i < 4 else "agrees" if hit else "differs" for i, hit in enumerate(whole[0].trace.boundary_agrees)
    ]
    changes = {"boundary_state": states, "trial": json.dumps({"boundaries": "stable"})}
    some = [*whole[:2], replace(whole[2], trace=replace(whole[2].trace, **changes))]
    said = {}
    for found in (judge(whole, 1, "stable"), judge(some, 1, "stable")):
        console = Console(width=200)
        with console.capture() as shown:
            console.print(table(found))
        said[found.one_point] = shown.get()
    assert said.keys() == {0, 1}
    assert "% of the oracle's at least" in said[1]
    assert "(at most " in said[1]
    assert "traces not tried throughout" in said[1]
    assert "at least" not in said[0]
    assert "tried" not in said[0]


def test_more_is_better_whatever_the_best_is_chosen_by() -> None:
    def made(error: float, length: float) -> Evaluation:
        ranking = Ranking(10, 0.5, 1 - error, error, error)
        return Evaluation(1, 1, [0.5], length, 1.5, {}, ranking, ranking, 0.5, {"0": 1 - error})

    good, bad = made(0.1, 3.0), made(0.2, 2.0)
    for best_by in ("acceptance_length", "auroc", "calibration_error", "brier", "cut"):
        assert good.score(best_by) > bad.score(best_by), best_by


def test_what_cannot_be_written_is_printed(tmp_path, capsys) -> None:
    """Numbers of hours, on a full disk."""
    ranking = Ranking(10, 0.5, 0.9, 0.1, 0.1)
    (tmp_path / "evaluation.json").mkdir()
    with pytest.raises(IsADirectoryError):
        show(Evaluation(1, 1, [0.5], 1.5, 1.5, {}, ranking, ranking, 0.5, {"0": 0.1}), tmp_path / "evaluation.json")
    assert "acceptance" in capsys.readouterr().err


def test_an_evaluation_that_could_not_be_written_does_not_begin(tmp_path: Path) -> None:
    """It was refused behind the last trace."""
    (tmp_path / "file").write_text("")
    config = EvaluateConfig(run=tmp_path / "run", traces=tmp_path / "traces", out=tmp_path / "file" / "found.json")
    with pytest.raises(ConfigError, match=r"^out=.*found\.json: .*file is no folder, expected one for the file$"):
        module.evaluate(config)


def test_every_definition_is_of_something_that_is_written() -> None:
    fields = {name for kind in (Evaluation, Ranking) for name in kind.__dataclass_fields__}
    assert set(DEFINITIONS) <= fields


@given(
    lengths=st.lists(st.one_of(st.integers(1, 300), st.integers(1, 40_000)), min_size=1, max_size=60),
    bucket=st.sampled_from([64, 128]),
)
def test_batches_hold_every_trace_once_in_bounded_memory_and_few_shapes(lengths: list[int], bucket: int) -> None:
    traces = [trace(5, length, 7) for length in lengths]
    found = list(batches(traces, 0, bucket))
    assert sorted(id(one) for batch, *_ in found for one in batch) == sorted(map(id, traces))
    for batch, rows, length in found:
        longest = max(len(sequence(one, 0)) for one in batch)
        assert len(batch) <= rows <= BATCH_ROWS
        assert rows == 1 or rows * length <= BATCH_TOKENS
        assert length % bucket == 0
        assert longest <= length < longest * 1.125 + bucket
    assert len({length for *_, length in found if length > 16 * bucket}) <= 8 * 10
    shapes = {(rows, length) for _, rows, length in found}
    assert len(shapes) == len({length for _, length in shapes}), "rows follow from the length"


def test_what_cannot_be_told_apart_is_said_in_words() -> None:
    nan = float("nan")
    assert ranking_words(Ranking(0, nan, nan, nan, nan)) == "there are none"
    said = ranking_words(Ranking(3, 0.0, nan, 0.25, 0.0625))
    assert said == "AUROC undefined, all of one kind   calibration error 0.2500   Brier 0.0625   (3, 0.0% valid)"


def test_an_evaluation_that_gets_no_device_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside a run that has the chips, which was a traceback."""

    def taken() -> str:
        raise RuntimeError("Unable to initialize backend 'tpu': in use by process 7\n(set JAX_PLATFORMS='')")

    monkeypatch.setattr(jax, "default_backend", taken)
    with pytest.raises(InputError, match=r"in use by process 7 \(set .*; JAX_PLATFORMS=cpu evaluates on the CPU"):
        started_backend()


def test_a_trace_that_is_longer_than_draft_or_target_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serving drafts nothing there, and its angles may be none that vLLM has: it was counted all the same."""
    shape = shapes_of(recipe(), TARGET).draft
    config = EvaluateConfig(run=tmp_path / "run", traces=tmp_path / "traces", out=tmp_path / "found.json")
    monkeypatch.setattr(module, "read_outlines", lambda *_: outlines([trace(10, 50, 3), trace(10, 60, 3)]))
    for most, positions, file in ((73, 4096, "run/draft.json"), (4096, 73, "target shallow: config")):
        short = shape.model_copy(update={"max_position_embeddings": most})
        target = TARGET.model_copy(update={"config": {**TARGET.hf_config(), "max_position_embeddings": positions}})
        monkeypatch.setattr(module, "read_start", lambda _, short=short: SimpleNamespace(shape=short))
        monkeypatch.setattr(module, "find_target", lambda *_, target=target, **__: target)
        said = rf"traces: the longest trace has 74 tokens, but by .*{file} \(max_position_embeddings.* 73 positions"
        with pytest.raises(ConfigError, match=said):
            module.evaluate(config)


def test_traces_of_another_tokenizer_judge_no_run_and_those_of_other_weights_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shape = shapes_of(recipe(), TARGET).draft
    (tmp_path / "config.json").write_text(json.dumps(TARGET.config))
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    target = TARGET.model_copy(update={"path": str(tmp_path)})
    monkeypatch.setattr(module, "read_start", lambda _: SimpleNamespace(shape=shape))
    for name in ("find_target", "target_of_file"):
        monkeypatch.setattr(module, name, lambda *_, **__: target)
    config = EvaluateConfig(run=tmp_path / "run", traces=tmp_path / "traces.parquet", out=tmp_path / "found.json")
    write_traces(tmp_path / "traces.parquet", [trace(10, 50, 3)], said={WEIGHTS: "0" * 64})
    monkeypatch.setattr(module, "refuse_trained", Mock(side_effect=InterruptedError))  # what comes next
    with pytest.raises(InterruptedError):
        module.evaluate(config)
    assert "by weights with the fingerprint 000000000000..." in capsys.readouterr().err
    write_traces(tmp_path / "traces.parquet", [trace(10, 50, 3)], said={TOKENIZER: "0" * 64})
    with pytest.raises(TraceError, match=r"written with the tokenizer 0{12}"):
        module.evaluate(config)


def test_traces_with_boundaries_elsewhere_judge_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its signals were judged where no server of the draft looks at them."""
    shape = shapes_of(recipe(), TARGET).draft
    config = EvaluateConfig(run=tmp_path / "run", traces=tmp_path / "traces", out=tmp_path / "found.json")
    monkeypatch.setattr(module, "read_outlines", lambda *_: outlines([trace(10, 50, 3)]))
    monkeypatch.setattr(module, "read_start", lambda _: SimpleNamespace(shape=shape))
    monkeypatch.setattr(module, "find_target", lambda *_, **__: TARGET)
    edited = TARGET.model_copy(update={"split_endings": ("?",)})
    monkeypatch.setattr(module, "target_of_file", lambda *_: edited)
    with pytest.raises(ConfigError, match=r"traces: their target has split_endings=\('\?',\), not .*draft\.json says"):
        module.evaluate(config)


def test_a_run_is_judged_by_as_many_steps_as_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three were, whatever its own evaluation had counted, and nothing said so."""
    shape = shapes_of(recipe(), TARGET).draft
    start = SimpleNamespace(shape=shape, aux_rms=(1.0,) * shape.num_aux_hidden_states, vocab=np.arange(4))
    monkeypatch.setattr(module, "read_start", lambda _: start)
    monkeypatch.setattr(module, "read_outlines", lambda *_: outlines([trace(10, 50, 3)]))
    for name in ("find_target", "target_of_file"):
        monkeypatch.setattr(module, name, lambda *_, **__: TARGET)
    for name in ("check_tokenizer", "doubt_weights", "said_of", "refuse_trained", "Draft", "load_target"):
        monkeypatch.setattr(module, name, Mock())
    monkeypatch.setattr(module, "restore_params", lambda *_: (8, {}))
    monkeypatch.setattr(module.nnx, "update", Mock())
    monkeypatch.setattr(type(TARGET), "think_tokens", Mock())
    asked = Mock(side_effect=InterruptedError)
    monkeypatch.setattr(module, "score", asked)
    config = EvaluateConfig(run=tmp_path / "run", traces=tmp_path / "traces", out=tmp_path / "found.json")

    def judged(**changes: int) -> int:
        with pytest.raises(InterruptedError):
            module.evaluate(config.model_copy(update=changes))
        return asked.call_args.kwargs["ttt_steps"]

    assert judged() == 3  # a folder that `convert` made
    save_run(recipe(ttt_steps=5), config.run)
    assert judged() == 5
    assert judged(ttt_steps=2) == 2
    (config.run / "run.yaml").write_text("config: {ttt_steps: none}")
    with pytest.raises(ConfigError, match=r"run\.yaml: config\.ttt_steps is 'none', expected a number from 1 on"):
        module.evaluate(config)
