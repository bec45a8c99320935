"""The parameters in an orbax checkpoint, read one at a time, and written from a draft directory, shard by shard."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as v1
from blake3 import blake3
from flax.nnx.traversals import flatten_mapping, unflatten_mapping
from jax.sharding import Mesh
from jaxtyping import Shaped

from jax_specexit.sharding import shardings
from jax_specexit.training.checkpoint import CHUNK, FOLDERS, opened, whole
from specexit.buckets import BucketPath


class Checkpoint(NamedTuple):
    """An open checkpoint."""

    step: int
    shapes: dict[str, jax.ShapeDtypeStruct]
    """Path of a parameter, joined by slashes -> its shape and type."""
    read: Callable[[str], np.ndarray]
    """The whole parameter at a path, from whatever mesh it was saved on."""
    chosen_by: str | None
    """Evaluation figure that the best checkpoint was chosen by; None for others, and for those of older versions."""


@contextmanager
def open_checkpoint(run: Path, which: Literal["latest", "best"] = "latest") -> Iterator[Checkpoint]:
    """The newest or the best checkpoint of a run; the optimizer's state is not read.

    Raises:
      ConfigError: the run has none, or it is damaged; damage may show only when a parameter is read.
    """
    with opened(run, which) as (manager, step):
        with whole(manager, step):
            saved = flatten_mapping(manager.item_metadata(step)["state"].tree["params"])

        def read(path: str) -> np.ndarray:
            leaf = saved[tuple(path.split("/"))]
            like = {"params": unflatten_mapping({tuple(path.split("/")): np.zeros((), leaf.dtype)})}
            restore = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), like)
            args = ocp.args.PyTreeRestore(item=like, restore_args=restore, partial_restore=True)
            with whole(manager, step):
                found = manager.restore(step, args=ocp.args.Composite(state=args))["state"]
            return np.asarray(jax.tree.leaves(found)[0])

        said = ocp.args.Composite(score=ocp.args.JsonRestore())
        with whole(manager, step):
            score = manager.restore(step, args=said)["score"] if which == "best" else {}
        shapes = {"/".join(key): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for key, leaf in saved.items()}
        yield Checkpoint(step, shapes, read, (score.get("measure") or {}).get("by"))


def write_checkpoint(
    folder: Path, parameters: Mapping[str, Callable[[], np.ndarray]], shapes: Mapping[str, tuple[int, ...]], mesh: Mesh
) -> None:
    """Write parameters as step 0 of a run folder, sharded as training on that mesh would shard them.

    On a disk they are read and written one after the other; for a bucket all are in memory at once.

    Args:
      folder: the run folder.
      parameters: path -> what reads the parameter; it keeps the type that it has.
      shapes: path -> its shape.
      mesh: whose devices hold the parameters while they are written.
    """
    leaves = {tuple(path.split("/")): jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    places = flatten_mapping(shardings(unflatten_mapping(leaves), mesh))
    step = str((folder / FOLDERS["latest"]).absolute() / "0")
    context = v1.Context()
    context.array.saving.storage_options.chunk_byte_size = CHUNK
    context.array.saving.use_compression = False  # it takes a third of the time and saves a tenth of the space

    def array(key: tuple[str, ...]) -> jax.Array:
        value = parameters["/".join(key)]()
        return jax.make_array_from_callback(value.shape, places[key], value.__getitem__)

    def save(*keys: tuple[str, ...]) -> None:
        values = unflatten_mapping({("params", *key): array(key) for key in keys})
        with context:
            v1.save(step, values) if isinstance(folder, BucketPath) else v1.partial.save(step, values)
        del values
        gc.collect(0)  # has JAX give numpy's memory back now, rather than after the next parameter is read

    def finalize() -> None:
        with context:
            v1.partial.finalize(step)

    # Ctrl-C reaches the main thread alone, so a save that has begun ends before the folder is removed.
    with ThreadPoolExecutor(1) as writer:
        writer.submit(int).result()  # starts the thread: nobody would wait for one that Ctrl-C meets while it starts
        if isinstance(folder, BucketPath):  # orbax writes a checkpoint into a bucket only as a whole
            writer.submit(save, *leaves).result()
            return
        for key in leaves:
            writer.submit(save, key).result()
        writer.submit(finalize).result()


class ParameterHash:
    """BLAKE3 of parameters in the order of their paths, whatever the order in which they are seen."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}

    def see(self, path: str, value: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        """Add a parameter to the hash; returns it."""
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        head = f"{path} {value.dtype.name} {list(value.shape)}\n".encode()
        self.parts[path] = blake3(head + blake3(data).digest()).hexdigest()
        return value

    def hexdigest(self) -> str:
        """The hash of everything seen."""
        return blake3("\n".join(self.parts[path] for path in sorted(self.parts)).encode()).hexdigest()
