"""What several tests of the shared package label and calibrate."""

import numpy as np
import pytest

from specexit.data.scores import Scores, key_of, write_scores
from specexit.data.traces import Trace, write_traces
from specexit.drafts.tensors import weights_hash
from specexit.schemas.target import load_target_config
from specexit.tiny.traces import PARAGRAPH


@pytest.fixture
def setting(tmp_path, write_random_draft, make_trace):
    """``setting(validity, agrees)``: paths of a draft, of traces with one early boundary each, and of their scores.

    ``validity[i]`` is what the draft says there and ``agrees[i]`` whether the answer there is the final one. Further
    fields of the traces may be functions of i.
    """

    def make(validity, agrees, *, source="draft", **changes):
        draft = write_random_draft(tmp_path / "draft", "draft")
        traces, signals = [], {}
        for i, (value, agree) in enumerate(zip(validity, agrees, strict=True)):
            answers = ["7" if agree else "8", "7", "7"]
            fields = {"id": str(i), "prompt_ids": [1, i], "boundary_answers": answers}
            fields |= {"boundary_agrees": [bool(agree), True, True]}
            fields |= {name: change(i) if callable(change) else change for name, change in changes.items()}
            traces.append(make_trace(**fields))
            values = np.full((10, 4), 0.01, np.float32)
            values[3, 3] = value
            signals[key_of(traces[-1])] = values
        write_traces(tmp_path / "traces.parquet", traces)
        write_scores(tmp_path / "scores.parquet", Scores(source, weights_hash(draft), signals))
        return {"draft": draft, "traces": tmp_path / "traces.parquet", "scores": tmp_path / "scores.parquet"}

    return make


@pytest.fixture(scope="module")
def tokenizer():
    return load_target_config("tiny-reasoner").tokenizer()


@pytest.fixture(scope="module")
def think(make_trace, tokenizer):
    """A trace made of (step, trial answer) pairs; the answer of the last one is that of the trace."""

    def make(*steps: tuple[str, str | None], reference: str | None = None, id: str = "a") -> Trace:
        ids: list[int] = []
        boundaries = []
        for text, _ in steps:
            ids += tokenizer.encode(text + PARAGRAPH)
            boundaries.append(len(ids))
        answers = [answer for _, answer in steps]
        return make_trace(
            id=id,
            think_ids=ids,
            boundaries=boundaries,
            answer=answers[-1],
            boundary_answers=answers,
            boundary_agrees=[answer == answers[-1] for answer in answers],
            boundary_confidence=[0.5] * len(answers),
            reference=reference,
            correct=None if reference is None else reference == answers[-1],
        )

    return make
