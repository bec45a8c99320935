"""A target's weights: Hugging Face folder to Flax and back, one table of names.

Loading streams: every shard of every parameter is read by itself from the safetensors files and handed to its device,
so a host reads only what its devices hold, and keeps only what it is reading. A matrix that is to be int8 is quantized
before the next one is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from flax.nnx.traversals import flatten_mapping, unflatten_mapping
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from jax_specexit.model.cached import CachedTarget, ends_of
from jax_specexit.model.experts import ExpertLinear, Mixture
from jax_specexit.model.layers import Linear, quantize
from jax_specexit.model.target import ARCHITECTURES, DENSE, Target, TargetShape
from jax_specexit.sharding import shardings
from specexit.buckets import BucketPath
from specexit.drafts.rope import scaling_fields
from specexit.drafts.target_weights import check_plain, refuse_second, target_files
from specexit.drafts.tensors import Stored, read_header
from specexit.errors import InputError

Index = tuple[slice, ...]
ModelT = TypeVar("ModelT", Target, CachedTarget)


def _hf_names(shape: TargetShape) -> dict[tuple[str, ...], tuple[str, bool]]:
    """NNX state path -> (Hugging Face tensor name, whether it is transposed).

    The first ``{}`` stands for the layer, the second for the expert.
    """
    names: dict[tuple[str, ...], tuple[str, bool]] = {
        ("embedding",): ("model.embed_tokens.weight", False),
        ("norm", "scale"): ("model.norm.weight", False),
    }
    if not shape.tie_word_embeddings:
        names["lm_head", "kernel"] = ("lm_head.weight", True)
    hf = "model.layers.{}"
    names["layers", "input_norm", "scale"] = (f"{hf}.input_layernorm.weight", False)
    names["layers", "post_norm", "scale"] = (f"{hf}.post_attention_layernorm.weight", False)
    for part in "qkvo":
        names["layers", "attention", part, "kernel"] = (f"{hf}.self_attn.{part}_proj.weight", True)
    for part in ("q_norm", "k_norm") if shape.qk_norm else ():
        names["layers", "attention", part, "scale"] = (f"{hf}.self_attn.{part}.weight", False)
    for part in "qkv" if shape.attention_bias else "":
        names["layers", "attention", part, "bias"] = (f"{hf}.self_attn.{part}_proj.bias", False)
    for part in ("gate", "up", "down"):
        if shape.num_experts:
            expert = f"{hf}.mlp.experts.{{}}.{part}_proj.weight"
            names["layers", "mlp", "experts", part, "kernel"] = (expert, True)
        else:
            names["layers", "mlp", part, "kernel"] = (f"{hf}.mlp.{part}_proj.weight", True)
    if shape.num_experts:
        names["layers", "mlp", "router", "kernel"] = (f"{hf}.mlp.gate.weight", True)
    return names


def _every(name: str, shape: TargetShape) -> np.ndarray:
    """The names of a parameter's tensors, in an array of its leading axes: none, [layers], or [layers, experts]."""
    counts = (shape.num_hidden_layers, shape.num_experts)[: name.count("{}")]
    return np.array([name.format(*place) for place in np.ndindex(*counts)], object).reshape(counts)


def abstract_target(shape: TargetShape, dtype: DTypeLike = jnp.float32, *, int8: bool = False) -> Target:
    """A target of shapes without values. Matrices are in ``dtype``; norms and biases stay float32.

    With ``int8`` those in `linears` are int8, with scales: see `jax_specexit.model.layers.Linear.quantize`.
    """
    whole = _typed(nnx.eval_shape(lambda: Target(shape, rngs=nnx.Rngs(0))), dtype)
    return nnx.eval_shape(_quantized, whole) if int8 else whole


def abstract_ends(shape: TargetShape, layers: Sequence[int], dtype: DTypeLike = jnp.float32) -> CachedTarget:
    """`abstract_target` for a target whose states are stored: its two ends alone."""
    return _typed(nnx.eval_shape(lambda: CachedTarget(shape, layers, rngs=nnx.Rngs(0))), dtype)


def _typed(model: ModelT, dtype: DTypeLike) -> ModelT:
    graph, state = nnx.split(model)

    def typed(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        small = any(name in jax.tree_util.keystr(path) for name in ("scale", "bias"))
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32 if small else jnp.dtype(dtype))

    return nnx.merge(graph, jax.tree.map_with_path(typed, state))


def _quantized(target: Target) -> Target:
    for linear in linears(target):
        linear.quantize()
    return target


def linears(target: Target) -> list[Linear | ExpertLinear]:
    """The layers' matrix products, stacked over the layers; not the router's, which decides by small differences."""
    attention, mlp = target.layers.attention, target.layers.mlp
    block = mlp.experts if isinstance(mlp, Mixture) else mlp
    return [attention.q, attention.k, attention.v, attention.o, block.gate, block.up, block.down]


def load_target(
    folder: Path, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None, *, int8: bool = False
) -> Target:
    """Load a target from a Hugging Face folder, straight onto its shards.

    Args:
      folder: with ``config.json`` and any number of ``.safetensors`` files.
      dtype: of the matrices on the devices. In bfloat16, the type of nearly all published weights, nothing is lost.
      mesh: what the target is sharded over, as `jax_specexit.sharding` says; None puts it on the default device.
      int8: whether the layers' matrices are quantized, each as soon as its shards are on their devices. The devices
        hold at most the int8 target, one matrix in ``dtype`` and what quantizing it takes.

    Raises:
      InputError: unknown architecture, a tensor is missing, is quantised or has another shape than the config says.
      ConfigError: the mesh does not divide the model.
    """
    shape = TargetShape.read(folder)
    stored = abstract_target(shape, dtype)
    return _load(folder, stored, abstract_target(shape, dtype, int8=True) if int8 else stored, mesh)


def load_ends(
    folder: Path, layers: Sequence[int], dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None
) -> CachedTarget:
    """Load a target's embedding, final norm and LM head, for training on stored states; its layers are not read.

    Raises:
      InputError, ConfigError: see `load_target` and `ends_of`.
    """
    path = folder / "config.json"
    shape = ends_of(json.loads(path.read_text()), path, folder)
    ends = abstract_ends(shape, layers, dtype)
    return _load(folder, ends, ends, mesh)


def _load(folder: Path, stored: ModelT, model: ModelT, mesh: Mesh | None) -> ModelT:
    """Load a model's weights, given the model without any.

    Args:
      folder: of the target.
      stored: the model in the types that its weights are read in.
      model: the same in the types that it is to have, where kernels may be int8.
      mesh: see `load_target`.
    """
    shape: TargetShape = stored.shape
    graph, state = nnx.split(model)
    wanted = nnx.to_pure_dict(state)
    places = flatten_mapping(shardings(wanted, mesh)) if mesh else {}
    int8 = {path for path, leaf in flatten_mapping(wanted).items() if leaf.dtype == jnp.int8}
    values = {}
    with _open(folder) as tensors:
        for path, leaf in flatten_mapping(nnx.to_pure_dict(nnx.state(stored))).items():
            name, transposed = _hf_names(shape)[path]
            names = _every(name, shape)
            expected = leaf.shape[names.ndim :]
            _check(folder, tensors, names, expected[::-1] if transposed else expected)
            read = _reader(tensors, names, transposed, leaf.dtype)
            if mesh:
                values[path] = jax.make_array_from_callback(leaf.shape, places[path], read)
            else:
                values[path] = jnp.asarray(read((slice(None),) * leaf.ndim))
            if path in int8:
                values |= _in_int8(path, values[path], places)
    return nnx.merge(graph, unflatten_mapping(values))


def _in_int8(path: tuple[str, ...], kernel: jax.Array, places: Mapping[Any, NamedSharding]) -> dict[Any, jax.Array]:
    """Quantize a kernel: the int8 one and its scales by their paths, on their devices. ``kernel`` itself is deleted."""
    paths = (path, (*path[:-1], "scale"))
    found = quantizing(tuple(places[one] for one in paths) if places else None)(kernel)
    jax.block_until_ready(found)
    kernel.delete()
    return dict(zip(paths, found, strict=True))


def quantizing(places: tuple[NamedSharding, ...] | None) -> Any:
    """The jitted program that makes a kernel int8; it returns the numbers and every column's scale, at ``places``."""
    return jax.jit(_numbers_and_scales, out_shardings=places)


def _numbers_and_scales(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    numbers, scales = quantize(kernel)
    return numbers[...], scales[...]


@contextlib.contextmanager
def _open(folder: Path) -> Iterator[dict[str, Any]]:
    """Tensor name -> its slice reader, over the files of a target's weights; nothing is read yet."""
    from safetensors import SafetensorError, safe_open

    files = target_files(folder)
    if not files:
        raise InputError(f"{folder}: no .safetensors file")
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Any] = {}
        places: dict[str, Path] = {}
        for file in files:
            if isinstance(file, BucketPath):
                held: dict[str, Any] = {name: _Ranged(stored) for name, stored in read_header(file).items()}
            else:
                try:
                    handle = stack.enter_context(safe_open(file, framework="numpy"))
                except (OSError, SafetensorError) as error:
                    raise InputError(f"{file}: cannot be read as safetensors (truncated?): {error}") from error
                held = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118, not a mapping
            for name in held:
                refuse_second(name, places.get(name), file)
            tensors |= held
            places |= dict.fromkeys(held, file)
        yield tensors


class _Ranged:
    """A tensor in a bucket, indexed like a slice of safetensors; for a few columns it reads their rows whole."""

    def __init__(self, stored: Stored):
        self.stored = stored

    def get_shape(self) -> list[int]:
        """Its sizes."""
        return list(self.stored.shape)

    def get_dtype(self) -> str:
        """Its type."""
        return self.stored.dtype.name

    def __getitem__(self, index: Index) -> np.ndarray:
        begin, end, _ = index[0].indices(self.stored.shape[0])
        return self.stored.rows(begin, end)[(slice(None), *index[1:])]


def _check(folder: Path, tensors: Mapping[str, Any], names: np.ndarray, shape: tuple[int, ...]) -> None:
    for name in names.flat:
        check_plain(folder, name, tensors, tensors[name].get_dtype() if name in tensors else None)
        if name not in tensors:
            raise InputError(f"{folder}: tensor {name} is missing")
        found = tuple(tensors[name].get_shape())
        if found != shape:
            raise InputError(f"{folder}: tensor {name} has shape {found}, expected {shape}")


def _reader(
    tensors: Mapping[str, Any], names: np.ndarray, transposed: bool, dtype: np.dtype
) -> Callable[[Any], np.ndarray]:
    """The callback of `jax.make_array_from_callback`, which reads a shard of a parameter from the tensors ``names``."""

    def read(index: Index) -> np.ndarray:
        """The shard of the parameter at an index, from its tensors."""
        wanted, index = np.asarray(names[index[: names.ndim]], object), index[names.ndim :]
        place = index[::-1] if transposed else index

        def one(i: int) -> np.ndarray:
            part = tensors[wanted.flat[i]][place]
            return part.T if transposed else part

        first = one(0)
        found = np.empty((wanted.size, *first.shape), dtype)
        found[0] = first

        def fill(i: int) -> None:
            found[i] = one(i)

        at_once = 8 if isinstance(tensors[wanted.flat[0]], _Ranged) else 1  # a bucket answers many requests at once
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(fill, range(1, wanted.size)))
        return found.reshape(*wanted.shape, *found.shape[1:])

    return read


def export_target(target: Target, folder: Path, **config: object) -> None:
    """Write ``config.json`` and ``model.safetensors`` (bfloat16) in Hugging Face layout.

    Args:
      target: the model.
      folder: created if need be; a tokenizer in it is left alone.
      config: further fields of ``config.json``, e.g. ``eos_token_id``.
    """
    from safetensors.numpy import save_file

    names, tensors = _hf_names(target.shape), {}
    for path, leaf in flatten_mapping(nnx.to_pure_dict(nnx.state(target))).items():
        (name, transposed), whole = names[path], np.asarray(leaf)
        for place, one in np.ndenumerate(_every(name, target.shape)):
            value = whole[place].T if transposed else whole[place]
            tensors[one] = np.ascontiguousarray(value).astype(ml_dtypes.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    shape, rope = dataclasses.asdict(target.shape), {"rope_type": "default", "rope_theta": target.shape.rope_theta}
    architecture = shape.pop("architecture")
    rope |= scaling_fields(target.shape.rope_scaling) or {}
    for name in ("rope_scaling", *(DENSE if target.shape.num_experts == 0 else ())):
        del shape[name]
    fields = {
        "architectures": [architecture],
        "model_type": ARCHITECTURES[architecture],
        **shape,
        "rope_parameters": rope,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        **config,
    }
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
