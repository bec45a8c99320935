"""A published draft of every layout: JAX and PyTorch compute from the import what its project states of it."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from specexit.drafts.directory import read_draft
from specexit.drafts.export import export
from specexit.drafts.published import import_draft
from specexit.schemas.export import ExportConfig
from specexit.schemas.published import ImportConfig
from tests.parity.layout_forward import published_logits, stated
from tests.parity.test_geometry import VARIANTS, logits_of_jax
from tests.shared.published import (
    AUX,
    CONFIGS,
    HIDDEN,
    MODEL_OPTIMIZER,
    SPECULATORS_0_9,
    VOCAB,
    mutated,
    tensors_of,
    write_published,
    write_target,
)
from torch_specexit.draft import Draft

STEPS, TIME = 3, 40

TOLERANCE = 5e-5
"""float32 logits of unit variance against float64: measured up to 6e-6."""

LAST = torch.from_numpy(np.random.default_rng(2).normal(size=(1, TIME - 1, HIDDEN)).astype(np.float32))
"""What the target's last layer gave, for speculators' loss."""


def inputs(layers):
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, (1, TIME))
    return embedding, tokens, rng.normal(size=(1, TIME, HIDDEN * layers)).astype(np.float32)


INSTANCES = {
    **{layout: (layout, {}) for layout in CONFIGS},
    "nemo, a narrower draft": ("nemo", {"hidden_size": 48, "target_hidden_size": HIDDEN}),
    "speculators 0.9.0": ("speculators", SPECULATORS_0_9),
    "angelslim, norm_before_fc": ("angelslim", {"norm_before_fc": True}),
    "specforge, norm_before_fc nested": (
        "specforge",
        {
            "fc_norm": False,
            "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 5, 8], "norm_before_fc": True},
        },
    ),
}
"""Layout, and what else its config says: variants that no project's own example has."""


@pytest.mark.parametrize("instance", [*INSTANCES, "model-optimizer"])
def test_an_import_computes_what_the_layout_states(instance, tmp_path):
    layout, says = INSTANCES.get(instance, (instance, MODEL_OPTIMIZER))
    published = CONFIGS.get(layout, {}) | says
    source = write_published(tmp_path / "published", layout, published, tensors_of(layout, config=published))
    import_draft(ImportConfig(draft=source, target=write_target(tmp_path / "of"), out=tmp_path / "draft"))
    embedding, tokens, aux = inputs(AUX.get(layout, 3))
    config = stated(layout, published)
    tensors = {name: tensor.astype(np.float64) for name, tensor in tensors_of(layout, config=published).items()}
    expected = published_logits(config, tensors, embedding.astype(np.float64), tokens[0], aux[0], STEPS)
    assert_both_compute(expected, tmp_path / "draft", embedding, tokens, aux)


def assert_both_compute(expected, folder, embedding, tokens, aux):
    """JAX and PyTorch give these logits [row][draft vocab] of every draft step, and draft the same."""
    ours = Draft.load(folder, torch.from_numpy(embedding))
    in_torch = [z[0].numpy() for z in ours(torch.from_numpy(tokens), torch.from_numpy(aux), steps=STEPS).logits]
    in_jax = [z[0] for z in logits_of_jax(folder, embedding, tokens, aux)]
    for found in (in_torch, in_jax):
        for z, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(z, wanted, atol=TOLERANCE, rtol=1e-4)
            np.testing.assert_array_equal(z.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize(
    "says", [{}, {"norm_before_fc": True}, SPECULATORS_0_9], ids=["older", "norm_before_fc", "0.9.0"]
)
def test_a_draft_of_speculators_computes_what_speculators_itself_does(says, tmp_path):
    target = write_target(tmp_path / "of", model_type="llama", tie_word_embeddings=True)
    embedding, tokens, aux = inputs(3)
    weights = {"model.embed_tokens.weight": embedding, "model.norm.weight": np.ones(HIDDEN, np.float32)}
    save_file(weights, tmp_path / "of" / "target" / "model.safetensors")
    # It reads its target as it is loaded, so that is one which is there.
    config = mutated("speculators", "speculators_config.verifier.name_or_path", str(tmp_path / "of" / "target")) | says
    tensors = tensors_of("speculators", config=config)
    source = write_published(tmp_path / "published", "speculators", config, tensors)
    import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft"))
    expected = [z[0].numpy() for z in by_speculators(source, tokens, aux)[0]]
    if says is SPECULATORS_0_9:  # its window stays where the first pass had it, vLLM's goes on with each draft step
        exact = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        given = (stated("speculators", config), exact, embedding.astype(np.float64), tokens[0], aux[0], STEPS)
        for z, wanted in zip(expected, published_logits(*given, moves=False), strict=True):
            np.testing.assert_allclose(z, wanted, atol=TOLERANCE, rtol=1e-4)
        expected[1:] = published_logits(*given)[1:]
    assert_both_compute(expected, tmp_path / "draft", embedding, tokens, aux)


def by_speculators(folder, tokens, aux):
    """speculators' own logits of every draft step, in float32, and its loss against random target states."""
    from speculators.losses import resolve_loss_config
    from speculators.models.attention import create_float_mask
    from speculators.models.eagle3 import Eagle3DraftModel

    theirs = Eagle3DraftModel.from_pretrained(folder).float()
    theirs._attn_impl, theirs._create_mask_fn = "eager", create_float_mask
    theirs.layers[0].self_attn.config._attn_implementation = "eager"
    found: list[torch.Tensor] = []
    theirs.lm_head.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    states, ids = torch.from_numpy(aux), torch.from_numpy(tokens)
    documents = torch.zeros(1, TIME - 1, dtype=torch.long)
    with torch.no_grad():
        rest = {"verifier_last_hidden_states": LAST, "ttt_steps": STEPS}
        rest["loss_config"] = resolve_loss_config("kl_div", "eager")  # the fused one needs a GPU
        _, loss, _ = theirs(states[:, :-1], ids[:, 1:], documents, **rest)
    return [z[:, : TIME - 1 - step] for step, z in enumerate(found)], loss


@pytest.mark.parametrize(
    ("variant", "source"),
    [
        *((variant, None) for variant in ("plain", "norm_before_residual", "fc_norm and norm_output", "qwen3")),
        ("rope llama3", None),
        # With signals, of which it knows nothing: they lie beside what it reads.
        ("plain", "draft"),
        ("plain", "fc"),
    ],
)
def test_speculators_loads_our_export_and_computes_the_same(variant, source, tmp_path, write_random_draft):
    shape = {"eagle_aux_hidden_state_layer_ids": (2, 6, 9), "target_num_hidden_layers": 12}
    folder = write_random_draft(tmp_path / "draft", source, **shape, **VARIANTS[variant])
    embedding, tokens, aux = inputs(3)
    tensors = read_draft(folder)[1]
    target = write_target(tmp_path / "of", model_type="llama", tie_word_embeddings=True)
    weights = {"model.embed_tokens.weight": embedding, "model.norm.weight": np.ones(HIDDEN, np.float32)}
    save_file(weights, tmp_path / "of" / "target" / "model.safetensors")
    export(ExportConfig(draft=folder, out=tmp_path / "out", format="speculators", target=target))
    found, loss = by_speculators(tmp_path / "out", tokens, aux)
    ids, states = torch.from_numpy(tokens), torch.from_numpy(aux)
    ours = Draft.load(folder, torch.from_numpy(embedding))(ids, states, steps=STEPS).logits
    for z, wanted in zip(ours, found, strict=True):
        torch.testing.assert_close(z, wanted, atol=TOLERANCE, rtol=1e-4)
    head = torch.from_numpy(embedding[tensors["t2d"]]).double()
    teacher = torch.log_softmax(torch.nn.functional.rms_norm(LAST.double(), (HIDDEN,), eps=1e-6) @ head.T, -1)
    expected = sum(
        (teacher[:, k:].exp() * (teacher[:, k:] - torch.log_softmax(z.double(), -1))).sum(-1).mean()
        for k, z in enumerate(ours)
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)  # float32 against float64
