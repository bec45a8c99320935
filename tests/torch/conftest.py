"""A server that pretends, and what is collected from it: for all tests of collecting."""

import pytest

from specexit.data.rows import Trace
from specexit.data.traces import read_traces
from tests.torch.pretend import N, Pretender, Server, config
from torch_specexit.collecting import collect


@pytest.fixture(scope="module")
def server():
    server = Server(Pretender(N))
    yield server
    server.close()


@pytest.fixture(scope="module")
def collected(server, tmp_path_factory) -> list[Trace]:
    out = tmp_path_factory.mktemp("collected") / "out"
    collect(config(server, out))
    return read_traces(out)
