"""What of a program's collectives is exposed, on programs of a few lines in the compiler's own words, by hand."""

import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from jax_specexit.planning.efficiency import DENSE, MATRIX_UNIT, MIXTURES, SPLASH, Efficiency, efficiency
from jax_specexit.planning.timeline import timeline
from specexit.chips import CHIPS, Chip

CHIP = Chip("toy", 1e12, 2e12, 16, 1e12, 10e9, 2, 256, 1e9)
SHARES = Efficiency(products=0.5, experts=0.25, forward=0.2, backward=0.4, run=None, derived=())
MESH = Mesh(np.arange(8).reshape(1, 4, 2, 1, 1).astype(object), ("data", "fsdp", "expert", "context", "tensor"))

FSDP = "replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}"
WHOLE = f"%g = f32[1000,100] all-gather(%x), {FSDP}"
"""Three quarters of 400 kB at 10 GB/s: 30 us."""


def start(i: int) -> str:
    """The same, apart from its end."""
    return f"%s{i} = (f32[250,100], f32[1000,100]) all-gather-start(%x), {FSDP}"


def done(i: int) -> str:
    return f"%d{i} = f32[1000,100] all-gather-done(%s{i})"


def dot(n: int) -> str:
    """2 x 100 x 1,000 x n FLOPs at half of 1 TFLOP/s: 40 us of 100 columns."""
    return f"%p = f32[100,{n}] dot(%a, %b{n}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}"


ARRAYS = ["%x = f32[250,100] parameter(0)", "%a = f32[100,1000] parameter(1)"]
ARRAYS += [f"%b{n} = f32[1000,{n}] parameter({n})" for n in (50, 100, 200)]


def spent(*lines: str, before: str = "", mesh: Mesh = MESH) -> dict[str, float]:
    """Microseconds of a program of these lines."""
    entry = "\n".join(f"  {line}" for line in (*ARRAYS, *lines))
    text = f"{before}\nENTRY %main (x: f32[250,100]) -> f32[1000,100] {{\n{entry}\n}}\n"
    return {part: seconds * 1e6 for part, seconds in timeline(text, mesh, CHIP, SHARES).items()}


@pytest.mark.parametrize(
    ("lines", "waits", "computes"),
    [
        ([WHOLE, dot(100)], 30, 40),
        ([start(0), dot(100), done(0)], 0, 40),
        ([start(0), dot(50), done(0)], 10, 20),
        ([start(0), done(0), dot(100)], 30, 40),
        # The second begins when the links are free, and both hide behind one product.
        ([start(0), start(1), dot(100), done(0), done(1)], 20, 40),
        ([start(0), start(1), dot(200), done(0), done(1)], 0, 80),
        # What is waited for at once waits for the links, too.
        ([start(0), WHOLE, dot(100), done(0)], 60, 40),
    ],
)
def test_a_chip_waits_for_what_is_not_done_when_it_is_needed(lines: list[str], waits: float, computes: float) -> None:
    found = spent(*lines)
    assert found.pop("products") == pytest.approx(computes)
    assert sum(found.values()) == pytest.approx(waits)
    assert set(found) <= {"fsdp"}


def test_a_loop_waits_in_every_round_and_a_branch_in_one() -> None:
    def body(name: str, *lines: str) -> str:
        return "\n".join(
            [f"%{name} (x: f32[250,100]) -> f32[1000,100] {{", *(f"  {x}" for x in (*ARRAYS, *lines)), "}"]
        )

    short = (start(0), dot(50), done(0))
    before = "\n\n".join(
        [body("round", *short), body("other", WHOLE), body("until", "ROOT %c = pred[] constant(true)")]
    )
    loop = '%w = f32[1000,100] while(%x), condition=%until, body=%round, backend_config={"known_trip_count":{"n":"5"}}'
    assert spent(loop, before=before) == pytest.approx({"fsdp": 50, "products": 100})
    branch = "%c = f32[1000,100] conditional(%x, %x, %x), branch_computations={%other, %round}"
    assert spent(branch, before=before)["fsdp"] == pytest.approx(30)


TPU_GATHER = f'all-gather(%part), channel_id=7, {FSDP}, frontend_attributes={{chain_id="3"}}'
"""On TPUs: in a fusion that starts it, in each with work that it overlaps with, and in one that ends it."""
FUSIONS = f"""
%begin (part: f32[250,100]) -> (f32[250,100], f32[1000,100]) {{
  %part = f32[250,100] parameter(0)
  %g = f32[1000,100] {TPU_GATHER}
  ROOT %c = (f32[250,100], f32[1000,100]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%overlapped (part: f32[250,100], a: f32[100,1000], b: f32[1000,50]) -> (f32[100,50], f32[1000,100]) {{
  %part = f32[250,100] parameter(0)
  %a = f32[100,1000] parameter(1)
  %b = f32[1000,50] parameter(2)
  %p = f32[100,50] convolution(%a, %b), dim_labels=bf_io->bf
  %g = f32[1000,100] {TPU_GATHER}
  ROOT %t = (f32[100,50], f32[1000,100]) tuple(%p, %g)
}}

%end (part: f32[250,100]) -> f32[1000,100] {{
  %part = f32[250,100] parameter(0)
  %g = f32[1000,100] {TPU_GATHER}
  ROOT %c = f32[1000,100] custom-call(%g), custom_call_target="AsyncCollectiveDone"
}}
"""
BEGIN = "%s = (f32[250,100], f32[1000,100]) fusion(%x), kind=kCustom, calls=%begin"
OVERLAPPED = "%f{} = (f32[100,50], f32[1000,100]) fusion(%x, %a, %b50), kind=kOutput, calls=%overlapped"
END = "%d = f32[1000,100] fusion(%x), kind=kCustom, calls=%end"


@pytest.mark.parametrize(("pieces", "waits"), [(0, 30), (1, 10), (2, 0)])
def test_a_gather_in_pieces_is_one(pieces: int, waits: float) -> None:
    found = spent(BEGIN, *(OVERLAPPED.format(i) for i in range(pieces)), END, before=FUSIONS)
    assert found.get("fsdp", 0) == pytest.approx(waits)
    assert found.get("products", 0) == pytest.approx(20 * pieces)


def test_transfers_between_slices_have_a_network_of_their_own() -> None:
    met = '_xla_host_transfer_rendezvous="one"'
    kind = '_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"'
    to = f"frontend_attributes={{{met},{kind}}}"
    send = f"%send = (f32[250,100], u32[], token[]) send(%x, %t), channel_id=3, is_host_transfer=true, {to}"
    receive = f"%recv = (f32[250,100], u32[], token[]) recv(%t), channel_id=2, is_host_transfer=true, {to}"
    received = "%r = (f32[250,100], token[]) recv-done(%recv), channel_id=2, is_host_transfer=true"
    # 100 kB at 1 GB/s, of which a product hides 40 us and a gather along the links 30.
    found = spent(send, receive, WHOLE, dot(100), received)
    assert found == pytest.approx({"fsdp": 30, "products": 40, "dcn_data": 30})


BATCHED = 2 * 8 * 4 * 16 * 32
"""FLOPs of [8, 4, 16] x [8, 16, 32]."""
PAIRS = 2 * 4 * 1024 * 2048 // 2
"""Of a causal query and a key, of 2 rows, 4 heads, and 1,024 of 2,048 tokens."""
AS_WINDOW = "window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf"
OPERANDS = 'custom_call_target="tpu_custom_call", operand_layout_constraints='
ATTENTION = OPERANDS + "{s8[1,2,4]{2,1,0}, bf16[2,4,1024,128]{3,2,1,0}, bf16[2,2,2048,128]{3,2,1,0}, s32[2,8]{1,0}}"
RAGGED = OPERANDS + "{s32[5]{0}, s32[67]{0}, bf16[512,64]{1,0}, bf16[4,64,256]{2,1,0}}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"%c = f32[8,4,32] convolution(%l, %r), {AS_WINDOW}", {"products": BATCHED / 0.5e6}),
        ("%c = f32[8,4,32] dot(%l, %r), lhs_batch_dims={0}, rhs_batch_dims={0}", {"products": BATCHED / 0.5e6}),
        ("%c = s32[8,4,32] dot(%l8, %r8), lhs_batch_dims={0}, rhs_batch_dims={0}", {"products": BATCHED / 1e6}),
        (f"%splash_mha_fwd_x = (f32[1]) custom-call(%l), {ATTENTION}", {"attention": PAIRS * 2 * 2 * 128 / 0.2e6}),
        (f"%splash_mha_dkv_x = (f32[1]) custom-call(%l), {ATTENTION}", {"attention": PAIRS * 5 * 2 * 128 / 0.4e6}),
        # Of 512 rows, half are of experts on this chip.
        (f"%ragged-dot-none.1 = bf16[512,256] custom-call(%l), {RAGGED}", {"experts": 2 * 256 * 64 * 256 / 0.25e6}),
        (f"%other = bf16[512,256] custom-call(%l), {RAGGED}", {}),
        ("%y = f32[8,4,16] add(%l, %l)", {}),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_products_by_their_shapes(line: str, expected: dict[str, float]) -> None:
    arrays = [f"%{name} = f32[{shape}] parameter(0)" for name, shape in (("l", "8,4,16"), ("r", "8,16,32"))]
    arrays += ["%l8 = s8[8,4,16] parameter(0)", "%r8 = s8[8,16,32] parameter(0)"]
    assert spent(*arrays, line) == pytest.approx(expected)


def test_a_share_that_is_another_chips_says_so() -> None:
    published = efficiency(CHIPS["tpu7x"], 8192, 128, experts=False)
    assert (published.forward, published.backward) == SPLASH[8192][0]
    assert published.derived == ("products",)
    # Between 8k and 32k of them lies 16k, and a unit of 128 is full of a head of 128.
    v6e, v5e = (efficiency(CHIPS[name], 16384, 128, experts=False) for name in ("v6e", "v5e"))
    assert v6e.forward == pytest.approx((0.2487 + 0.3091) / 2)
    assert v5e.forward == pytest.approx((0.4486 + 0.5681) / 2)
    assert v5e.derived == ("attention",)
    assert efficiency(CHIPS["v5p"], 2048, 128, experts=True).derived == ("products", "attention")
    assert efficiency(CHIPS["v5p"], 2048, 128, experts=True).forward == SPLASH[4096][1][0]


def test_every_chip_has_a_matrix_unit_and_every_table_is_of_chips() -> None:
    assert set(MATRIX_UNIT) == set(CHIPS)
    assert set(DENSE) | set(MIXTURES) <= set(CHIPS)


@pytest.mark.parametrize(("name", "cores"), [("v5e", 1), ("v5p", 2), ("v6e", 1)])
def test_peaks_are_those_that_jax_has_of_a_chip(name: str, cores: int) -> None:
    """To three digits, which it rounds them to. Its own are of one core."""
    info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion(name), cores)
    assert CHIPS[name].flops == pytest.approx(cores * info.bf16_ops_per_second, rel=0.005)
    assert CHIPS[name].int8_flops == pytest.approx(cores * info.int8_ops_per_second, rel=0.005)
    assert MATRIX_UNIT[name] == info.mxu_column_size
