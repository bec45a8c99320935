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


def undone(folder, plant):
    """Mistakes of a draft whose repair gives the weights that it had before one was planted."""
    config, tensors = read_draft(folder)
    right = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    wrong = right | plant(right)
    return {
        one.mistake
        for one in repairs(config, wrong, {}, torch.zeros(200, 64))
        if (changed := one.weights(wrong)) and all(torch.equal((wrong | changed)[name], right[name]) for name in right)
    }


def test_square_matrices_are_tried_transposed_and_signal_rows_stay(tmp_path, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "fc")
    output = "midlayer.self_attn.o_proj.weight"
    assert undone(folder, lambda right: {output: right[output].T}) == {f"{output} looks transposed"}

    def fusion(right):
        rows, signals = right["fc.weight"].split([64, 4])
        return {"fc.weight": torch.cat([torch.cat([block.T for block in rows.split(64, dim=1)], dim=1), signals])}

    assert undone(folder, fusion) == {"fc.weight looks transposed"}


@pytest.mark.parametrize("sides", [(2, 4), (4, 2)])
def test_query_heads_are_tried_in_both_orders(sides, tmp_path, write_random_draft):
    shape = {"num_attention_heads": 8, "head_dim": 8, "attention_bias": True}
    folder = write_random_draft(tmp_path / "draft", None, **shape)
    q, o = (f"midlayer.self_attn.{part}_proj" for part in "qo")

    def rearranged(right):
        order = torch.arange(64).view(*sides, 8).transpose(0, 1).flatten()
        rows = {name: right[name][order] for name in (f"{q}.weight", f"{q}.bias")}
        return rows | {f"{o}.weight": right[f"{o}.weight"][:, order]}

    assert undone(folder, rearranged) == {"query heads look to be in another order"}
