"""Under what a benchmark measures besides its config: on what machine, with what code."""

from __future__ import annotations

import os
from typing import Any

from specexit.config import revision
from specexit.hardware import describe_hardware


def machine() -> dict[str, Any]:
    """What seconds hang on; of the same machine the same whenever it is asked, so no memory, of which a kernel tells
    what it has left. The accelerator is told by the engines, see `specexit.bench.journal.Journal.check_accelerator`."""
    hardware = describe_hardware()
    found = {name: hardware[name] for name in ("processor", "cores", "system")}
    # As `torch_specexit.engine.set_environment` has it.
    return found | {"threads": os.environ.get("OMP_NUM_THREADS", "1"), "revision": revision()}
