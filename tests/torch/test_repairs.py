"""Which mistakes `verify` can undo in a draft; that it finds them is shown with drafts that draft well, in serving."""

import pytest
import torch

from specexit.drafts.directory import read_draft
from specexit.drafts.rope import RopeScaling
from torch_specexit.mistakes import repairs

YARN = RopeScaling("yarn", 32.0, original_max_position_embeddings=2048)


@pytest.mark.parametrize(
    ("own", "target", "tried"),
    [
        # A scaling that an exporter added: what the draft was trained with has its own theta, not the target's.
        (YARN, {"rope_theta": 1e6}, [(None, 1e6), (None, 1e4)]),
        (None, {"rope_theta": 1e6}, []),
        (None, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, [(RopeScaling("linear", 2.0), 1e4)]),
        (YARN, {}, [(None, 1e4)]),
        (YARN, {"rope_theta": None, "rope_parameters": {"rope_theta": 1e6}}, [(None, 1e6), (None, 1e4)]),
        # The target's own is not implemented, which says nothing of the draft's.
        (YARN, {"rope_scaling": {"rope_type": "longrope", "long_factor": [4.0]}}, [(None, 1e4)]),
    ],
)
def test_scalings_that_a_draft_may_have_been_trained_with_are_tried(own, target, tried, tmp_path, write_random_draft):
    config, tensors = read_draft(write_random_draft(tmp_path / "draft", None, rope_scaling=own))
    weights = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    found = [one.config for one in repairs(config, weights, target, torch.zeros(200, 64)) if "scaling" in one.mistake]
    assert [(one.rope_scaling, one.rope_theta) for one in found] == tried
