"""What ``specexit calibrate`` leaves in ``policy.json``: what others write there, and what the certificates are of."""

import numpy as np
import pytest

from specexit.drafts.policy import Serving, read_policy, write_policy
from specexit.method.calibrate import calibrate
from specexit.schemas.calibrate import CalibrateConfig
from tests.shared.calibration import refused

N = 150


@pytest.fixture
def paths(setting):
    """Files that carry a certificate: every exit is right."""
    return setting(np.full(N, 0.995), [True] * N)


def test_a_point_that_serving_names_must_come_again_which_is_said_before_anything_is_replayed(paths, monkeypatch):
    """The file was written all the same, and then no server could read it, nor any command, `calibrate` itself among
    them."""
    stored = calibrate(CalibrateConfig(**paths, epsilon=(0.02, 0.05)))
    write_policy(paths["draft"], stored.model_copy(update={"serving": Serving(efforts={"low": "risk-0.05"})}))
    with monkeypatch.context() as m:
        m.setattr("specexit.method.calibrate.replays", lambda *_: pytest.fail("hours are spent"))
        said = r"policy\.json: serving\.efforts\.low is 'risk-0\.05', expected a point: risk-0\.02, which is all"
        refused(paths, said)
    calibrate(CalibrateConfig(**paths, epsilon=(0.02, 0.05)))
    assert read_policy(paths["draft"]).serving.efforts == {"low": "risk-0.05"}
