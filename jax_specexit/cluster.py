"""The processes of a job: how they find one another, and how a preemption notice stops them at the same step.

The one place that touches `jax.distributed`. JAX recognises Cloud TPU VMs, TPU pods on GKE (JobSet) and SLURM by their
environments; anywhere else, `ClusterConfig` names the coordinator.
"""

from __future__ import annotations

import signal
import socket
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from specexit.config import ConfigError, PassingError
from specexit.schemas.train import ClusterConfig


def join(config: ClusterConfig) -> None:
    """Join the other processes of the job; returns when all are there, at once where this is the only one.

    Must come before anything that makes JAX look for its devices. A cluster that is recognised but cannot be joined is
    an error: a host that trained on alone would write into the others' run folder.

    Raises:
      ConfigError: the processes are given by hand, but JAX has looked for its devices already.
      PassingError: another process has the coordinator's port.
    """
    if jax.distributed.is_initialized():
        return
    if config.coordinator is not None:
        if config.process_id == 0:
            _check_port(config.coordinator)
        which = f"process {config.process_id} of {config.num_processes} (cluster.process_id, cluster.num_processes)"
        said = f"{which}: waits for all others, five minutes at most, at cluster.coordinator={config.coordinator}"
        Console(stderr=True).print(said, soft_wrap=True, markup=False, highlight=False)
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            heartbeat_timeout_seconds=config.heartbeat,
            shutdown_timeout_seconds=config.heartbeat,
        )
    except ValueError as error:  # JAX's way to say that it recognises no cluster
        if config.coordinator is not None or "coordinator_address should be defined" not in str(error):
            raise
    except RuntimeError as error:  # a notebook or a test that has used JAX before, on its own
        if "must be called before" not in str(error):
            raise
        if config.coordinator is not None:
            raise ConfigError(f"cluster.coordinator={config.coordinator}: JAX is in use already: {error}") from error


def _check_port(coordinator: str) -> None:
    """Check that nobody listens at the coordinator's port; the process that is about to listen there calls it.

    Where the port is taken JAX dies without a message, or, if another run's coordinator has it, shares it.

    Raises:
      PassingError: another process listens at the port.
    """
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise PassingError(
                f"cluster.coordinator={coordinator}: another process of this machine listens at port {port}: end it, "
                "or choose another port in all processes"
            )


def is_first() -> bool:
    """Whether this is the process that prints, and writes what is written once."""
    return jax.process_index() == 0


MESSAGE_BYTES = 1024


def told_by_first(message: str) -> str:
    """The first process's message, in every process; all must call it. It is cut to `MESSAGE_BYTES`."""
    padded = message.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0")
    heard = multihost_utils.broadcast_one_to_all(np.frombuffer(padded, np.uint8))
    return np.asarray(heard, np.uint8).tobytes().rstrip(b"\0").decode(errors="replace")


class Preemption:
    """Listens for the notice (SIGTERM) that this machine will go away soon.

    Use it as a context manager around all steps and the last save: no notice that comes in there, not even a second
    one, cuts the save short.

    With several processes, JAX's preemption service listens for SIGTERM instead, and picks the call of `reached` at
    which all of them stop. Where that service is switched off (``JAX_ENABLE_PREEMPTION_SERVICE=0``), SIGTERM kills the
    process, and the run goes on from its last regular checkpoint when it is started again.
    """

    def __init__(self) -> None:
        self.noticed, self.asked = False, 0
        self.alone = not jax.distributed.is_initialized()
        self.before = None

    def __enter__(self) -> Preemption:
        # Python delivers signals to the main thread alone, and lets no other set a handler.
        if self.alone and threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def _notice(self, *_: object) -> None:
        self.noticed = True

    def reached(self) -> bool:
        """Whether to save and stop here; once yes, always yes.

        Every process must call it where all the others do: after every step, and before every batch of an evaluation.
        """
        if self.alone or self.noticed:
            return self.noticed
        if not jax.config.jax_enable_preemption_service:  # pyright: ignore[reportAttributeAccessIssue]
            return False
        self.asked += 1  # JAX calls this number a step; it says yes to only one, the first that comes after the notice
        self.noticed = multihost_utils.reached_preemption_sync_point(self.asked)
        return self.noticed
