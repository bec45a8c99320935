"""A prompt that was trained on is refused where something is judged, whatever its id and its sample."""

import io

import numpy as np
import pytest

from specexit.data.outlines import outlines
from specexit.data.overlap import FILE, OverlapError, copy_prompts, refuse_shared, refuse_trained
from specexit.data.packing import pack
from specexit.data.rows import LabelledTrace
from specexit.data.traces import write_traces
from specexit.errors import InputError
from specexit.schemas.pack import PackConfig


@pytest.fixture
def packed(make_trace, tmp_path):
    """Two samples of one prompt and one of another."""
    traces = [make_trace(), make_trace(sample=1), make_trace(id="b", prompt_ids=[4, 5])]
    labelled = [LabelledTrace(**vars(t), exit_earliest=7, exit_stable=7, hard_boundary=None) for t in traces]
    write_traces(tmp_path / "labelled" / "traces.parquet", labelled)
    pack(PackConfig(traces=tmp_path / "labelled", out=tmp_path / "packed", length=40))
    return tmp_path / "packed"


def test_prompts_of_packed_data_are_known_by_their_tokens(packed, make_trace, tmp_path):
    fresh = [make_trace(id="a", prompt_ids=[9, 9, 9])]  # an id says nothing
    refuse_trained(packed, fresh, tmp_path)
    again = make_trace(id="new", prompt_ids=[4, 5], sample=3, think_ids=list(range(10)))
    with pytest.raises(OverlapError, match=r"held-out: 1 of 2 prompts were trained on .*the first is of trace 'new'"):
        refuse_trained(packed, [*fresh, again, again], tmp_path / "held-out")


def test_the_list_travels_and_its_absence_is_no_error(packed, make_trace, tmp_path):
    for folder in ("draft", "older"):
        (tmp_path / folder).mkdir()
    copy_prompts(packed, tmp_path / "draft")
    with pytest.raises(OverlapError):
        refuse_trained(tmp_path / "draft", [make_trace()], tmp_path)
    copy_prompts(tmp_path / "older", tmp_path / "draft" / "nothing")
    refuse_trained(tmp_path / "older", [make_trace()], tmp_path)


def test_problems_that_parameters_are_chosen_on_are_not_judged(make_trace, tmp_path):
    """By the prompt: neither its id nor its sample makes it another problem."""
    chosen = [make_trace(), make_trace(sample=1), make_trace(id="b", prompt_ids=[4, 5])]
    refuse_shared(outlines(chosen), tmp_path, [make_trace(prompt_ids=[9, 9, 9])], tmp_path)
    judged = [make_trace(id="new"), make_trace(id="other", prompt_ids=[9, 9, 9])]
    with pytest.raises(
        OverlapError, match=r"tuned: 1 of its 2 prompts are among the 2 of .*test \(the first is of trace 'new'\)"
    ):
        refuse_shared(outlines(chosen), tmp_path / "tuned", judged, tmp_path / "test")


def npy(shape, dtype="<u8"):
    """A header of NumPy's, with eight bytes behind it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(8)


@pytest.mark.parametrize(
    "damage", [b"cut", npy((10**12,)), npy((2,)), npy((1, 1)), npy((1,), "<f8"), npy((1,), "|O"), npy((1,)) + b"x"]
)
def test_a_list_that_is_not_of_hashes_is_refused_before_it_takes_memory(damage, make_trace, tmp_path):
    (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(OverlapError, match=r"prompts\.npy: cannot be read as the hashes of prompts"):
        refuse_trained(tmp_path, [make_trace()], tmp_path)
    with pytest.raises(OverlapError, match=r"prompts\.npy: cannot be read as the hashes of prompts"):
        copy_prompts(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_list_of_another_folder_is_not_copied(packed, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).symlink_to(packed / FILE)
    with pytest.raises(InputError, match=f"^{tmp_path / 'run' / FILE}: is a link out of its folder"):
        copy_prompts(tmp_path / "run", tmp_path / "draft")
    assert not (tmp_path / "draft").exists()
