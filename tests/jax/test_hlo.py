"""What is read off a compiled program: transfers between slices, by hand, in the compiler's own words."""

import numpy as np
import pytest
from jax.sharding import Mesh

from jax_specexit.planning.hlo import collectives

SEND = (
    "  %send = ({array}, u32[], token[]) send(%x, %after-all), channel_id=2, is_host_transfer=true, "
    'frontend_attributes={{_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target={target},'
    '_xla_megascale_transfer_type="{kind}"}}'
)


def program(array: str, target: str, kind: str) -> str:
    """One send within a loop of four rounds; what comes back is a line of its own, and is not counted."""
    send = SEND.format(array=array, target=target, kind=kind)
    return f"""
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
{send}
{send.replace("send", "recv")}
}}

%condition (p: (s32[], f32[8])) -> pred[] {{
  ROOT %c = pred[] constant(true)
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body, backend_config={{"known_trip_count":{{"n":"4"}}}}
}}
"""


@pytest.mark.parametrize(
    ("array", "target", "kind", "sent"),
    [
        # Summing a chip's 4 KiB with another slice's: half of it goes over, and half of the sum comes back.
        ("f32[8,128]{1,0:T(8,128)}", '"{1,2}x{0:7}"', "ALL_REDUCE", 4096.0),
        ("bf16[8,128]{1,0:T(8,128)(2,1)}", '"{1,2,3,4}x{0:7}"', "ALL_REDUCE", 2048 * 2 * 3 / 4),
        ("f32[8,128]{1,0}", '"{1,2,3}x{0:7}"', "ALL_GATHER", 2 * 4096.0),
        ("f32[8,128]{1,0}", '"{1,2}x{0:7}"', "REDUCE_SCATTER", 2048.0),
        ("f32[8,128]{1,0}", "{{200000->100007},{100002->200000}}", "ONE_TO_ONE", 4096.0),
    ],
    ids=str,
)
def test_what_crosses_to_other_slices_is_counted_by_what_a_chip_sends(
    array: str, target: str, kind: str, sent: float
) -> None:
    one_slice = Mesh(np.empty((1, 8), object), ("data", "fsdp"))
    (found,) = collectives(program(array, target, kind), one_slice)
    assert (found.kind, found.axes, found.times) == (kind.lower().replace("_", "-"), ("dcn_data",), 4)
    assert (found.shapes, found.sent) == (((8, 128),), sent)


def test_a_sum_of_which_a_part_is_kept_is_sent_once() -> None:
    """On TPUs a reduce-scatter is a fusion of this name, which a cut of the sum ends."""
    whole = "  %sum = bf16[64,32]{1,0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add"
    text = f"%all-reduce-scatter.1 (x: bf16[64,32]) -> bf16[16,32] {{\n{whole}\n}}\n\nENTRY %main (x: bf16[64,32]) -> "
    text += f"bf16[16,32] {{\n  %f = bf16[16,32] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1\n{whole}\n}}\n"
    kept, summed = collectives(text, Mesh(np.arange(8).reshape(2, 4).astype(object), ("data", "fsdp")))
    assert (kept.kind, kept.sent, summed.kind, summed.sent) == (
        "reduce-scatter",
        4096 * 3 / 4,
        "all-reduce",
        4096 * 1.5,
    )
