"""Engines on a cluster that die: what Ray would start again for ever. No cluster is started here; costs two seconds.

That the rest of a real cluster works is for `test_collect.py`.
"""

import asyncio
import json
import traceback
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from specexit.schemas.collect import CollectConfig
from tests.torch.pretend import TARGET, Pretender
from torch_specexit.collecting.tracer import Response
from torch_specexit.collecting.work import CollectError, all_asks

ray = pytest.importorskip("ray")

from torch_specexit.collecting import cluster  # noqa: E402

CONFIG = CollectConfig(target="tiny-reasoner", out="unused", split="test", n=1)


class Handle:
    """What Ray makes of an actor: its methods are called by `remote`, and answer later."""

    def __init__(self, starts: cluster.Starts):
        self.began, self.finished = (SimpleNamespace(remote=later(x)) for x in (starts.began, starts.finished))


def later(method):
    async def call(*arguments):
        return method(*arguments)

    return call


class Living:
    """An engine that works."""

    def __init__(self, *_):
        self.pretender = Pretender(1)

    async def generate(self, ids, how):
        """What the model would write."""
        written = self.pretender.write(ids, how.seed)
        return Response(written, [-0.1] * len(written), "stop")

    async def run(self) -> None:
        """Step until it is told to stop."""
        await asyncio.Event().wait()


@pytest.fixture
def starts(monkeypatch):
    context = SimpleNamespace(get_actor_id=lambda: "engine-0")
    monkeypatch.setattr(cluster.ray, "get_runtime_context", lambda: context)
    return Handle(cluster.Starts())


def row() -> dict:
    [ask] = all_asks(CONFIG, TARGET)
    return {"number": 0, "ask": json.dumps(ask.to_json())}


async def die(starts) -> None:
    """An actor that Ray has started, and that dies with its engine half started."""
    await cluster.Collector(CONFIG, TARGET, starts)._start()


def test_an_engine_that_dies_at_every_start_is_given_up(starts, monkeypatch):
    monkeypatch.setattr(cluster, "LocalEngine", Living)

    async def run() -> None:
        for _ in range(cluster.MOST_STARTS):
            await die(starts)
        await cluster.Collector(CONFIG, TARGET, starts)(row())

    with pytest.raises(CollectError, match="an engine was started 3 times and died each time before"):
        asyncio.run(run())


def test_an_engine_that_has_worked_may_die_again(starts, monkeypatch):
    monkeypatch.setattr(cluster, "LocalEngine", Living)

    async def run() -> None:
        for _ in range(3):
            await die(starts)
            await die(starts)
            found = await cluster.Collector(CONFIG, TARGET, starts)(row())
            assert json.loads(found["trace"])["id"] == "test-0-00000"

    asyncio.run(run())


def raised(cause: Exception) -> Exception:
    """What Ray Data raises where an actor raised ``cause``: of that nothing is left but the text of a traceback."""
    try:
        raise ray.exceptions.UserCodeException("UDF failed to process a data block.\nFailed to apply UDF") from cause
    except ray.exceptions.UserCodeException as error:
        text = traceback.format_exc()
        outer = ray.exceptions.RayTaskError("MapWorker(Map(Collector)).submit", text, error.with_traceback(None))
        outer.cause.__cause__ = None  # as behind a pickle
        return outer.as_instanceof_cause()


def test_the_error_is_the_engine_s_own():
    said = cluster._reason(raised(CollectError("the engine's own words")))
    assert said == "the engine's own words"
    memory = ValueError("No available memory for the cache blocks.\nTry a smaller engine.kv_cache_gib")
    assert cluster._reason(raised(memory)) == (
        "ValueError: No available memory for the cache blocks. Try a smaller engine.kv_cache_gib"
    )


def test_the_first_of_several_errors_is_the_cause():
    outer = RuntimeError("the engine did not start")
    outer.__cause__ = OSError("model.safetensors: no space left")
    assert cluster._reason(raised(outer)) == "OSError: model.safetensors: no space left"


def test_a_death_without_words_is_one_line_too():
    dead = ray.exceptions.ActorDiedError()
    assert cluster._reason(dead) == "The actor died unexpectedly before finishing this task."
    wrong = raised(_wrong_engine())
    assert cluster._reason(wrong).startswith("ValidationError: 1 validation error for CollectConfig n Input should be")
    assert "errors.pydantic.dev" not in cluster._reason(wrong)
    long = cluster._reason(ray.exceptions.RayError("a\nb" * 1000))
    assert "\n" not in long
    assert len(long) <= 500


def _wrong_engine() -> ValidationError:
    """What an argument that an engine does not take is said to be, over several lines."""
    with pytest.raises(ValidationError) as caught:
        CollectConfig.model_validate({"target": "t", "out": "o", "split": "test", "n": "many"})
    return caught.value
