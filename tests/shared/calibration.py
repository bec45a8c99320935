"""What tests of ``specexit calibrate`` have in common."""

import pytest

from specexit.method.calibrate import calibrate
from specexit.method.sample import SampleError
from specexit.schemas.calibrate import CalibrateConfig


def refused(paths, message, error=SampleError, **changes):
    """The command refuses, and leaves the draft as it was."""
    before = {path.name: path.read_bytes() for path in paths["draft"].iterdir()}
    with pytest.raises(error, match=message):
        calibrate(CalibrateConfig(**paths, **changes))
    assert {path.name: path.read_bytes() for path in paths["draft"].iterdir()} == before
