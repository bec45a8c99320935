"""What a server may answer, and what becomes of it. No server is started: answers come from a function."""

import asyncio
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count

import httpx
import pytest

from specexit.config import ConfigError, load
from specexit.data.prompts import Prompt
from specexit.data.rows import Trace
from specexit.schemas.collect import CollectConfig
from specexit.schemas.sampling import NEUTRAL
from tests.torch.pretend import TARGET, TOKENIZER
from torch_specexit.collecting import endpoints
from torch_specexit.collecting.endpoint import PROBE, Endpoint
from torch_specexit.collecting.endpoints import EndpointEngine
from torch_specexit.collecting.tracer import Response
from torch_specexit.collecting.work import NO_EXITS, Ask, CollectError, Decoding, NoAnswer
from torch_specexit.plugin.frontend.arguments import ArgumentError, parse
from torch_specexit.plugin.frontend.permissions import check_permitted

MODELS = {"data": [{"id": "tiny-reasoner"}]}
CHOICE = {"token_ids": [1, 2], "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.1, -0.2]}}
PROBED = {"model": "tiny-reasoner", "choices": [{"token_ids": [1], "prompt_token_ids": TOKENIZER.encode(PROBE)}]}


def ask(models=MODELS, probed=PROBED, sent=None, **choice) -> Response:
    """Check a server and ask it for a completion; the bodies of both requests go to ``sent``."""
    answers = iter([models, probed, {"model": "tiny-reasoner", "choices": [CHOICE | choice]}])
    config = CollectConfig.model_validate({"target": "t", "out": "o", "split": "test"})

    def handle(request: httpx.Request) -> httpx.Response:
        if sent is not None and request.method == "POST":
            sent.append(json.loads(request.content))
        return httpx.Response(200, content=json.dumps(next(answers)))

    async def run() -> Response:
        endpoint = Endpoint("http://server", config)
        endpoint.client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
        await endpoint.check(config, TARGET, TOKENIZER)
        return await endpoint.complete([1], Decoding(5))

    return asyncio.run(run())


def test_what_vllm_answers():
    assert ask() == ANSWER


def test_every_request_asks_for_whole_thinking():
    """A server with a SpecExit draft would cut it, and traces that exits have cut show no exit that is wrong."""
    sent = []
    ask(sent=sent)
    assert [body["vllm_xargs"] for body in sent] == [{"specexit": False}] * 2


def test_nothing_of_a_model_s_generation_config_decides_how_a_trace_is_sampled():
    """A server takes what a request does not say from there, and what is recorded is temperature, top_p and top_k.

    A repetition penalty would keep a trial, too, from the digits that the thinking has stated.
    """
    sent = []
    ask(sent=sent)
    asked = {key: sent[-1].get(key) for key in ("temperature", "top_p", "top_k", *NEUTRAL)}
    plain = {"min_p": 0, "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1}
    assert asked == {"temperature": 0, "top_p": 1, "top_k": 0} | plain


def test_a_server_that_lets_no_request_switch_exits_off_is_refused_with_what_to_change():
    with pytest.raises(ArgumentError) as said:
        check_permitted(parse(NO_EXITS), "none")
    error = {"error": {"message": str(said.value), "param": said.value.parameter, "code": 400}}
    refusing = Server(lambda prompt, _: httpx.Response(400, json=error) if prompt == PROBE else None)
    with pytest.raises(CollectError, match=r"^http://s0: serves a SpecExit draft.*expected requests: off-only.*400"):
        ask_all(PROMPTS, refusing)
    assert refusing.completions == 0


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"models": []}, "v1/models: the answer is no vLLM server's"),
        ({"models": {}}, "v1/models: the answer is no vLLM server's: data"),
        ({"models": {"data": None}}, "v1/models: the answer is no vLLM server's: data"),
        ({"models": {"data": ["tiny-reasoner"]}}, "v1/models: the answer is no vLLM server's"),
        ({"models": {"data": []}}, "serves no model, expected .*tiny-reasoner"),
        ({"probed": []}, "v1/completions: the answer is no vLLM server's"),
        ({"probed": {"error": {"message": "out of memory"}}}, "v1/completions: the answer is no vLLM server's: model"),
        ({"probed": {"model": "tiny-reasoner", "choices": []}}, "carry no token_ids, expected a vLLM server of 0.10.2"),
        ({"token_ids": "ab"}, "v1/completions: the answer is no vLLM server's: choices"),
        ({"logprobs": None}, "0 log-probabilities of 2 tokens, expected one of each"),
        ({"logprobs": {"token_logprobs": None}}, "0 log-probabilities of 2 tokens"),
        ({"logprobs": {"token_logprobs": [-0.1]}}, "1 log-probabilities of 2 tokens"),
        ({"logprobs": {"token_logprobs": [-0.1, math.nan]}}, "a token has the log-probability nan, expected 0 at most"),
        ({"logprobs": {"token_logprobs": [math.inf, -0.1]}}, "log-probability inf"),
        ({"logprobs": {"token_logprobs": [-0.1, 5]}}, "log-probability 5, expected 0 at most"),
        ({"token_ids": [1] * 6, "logprobs": {"token_logprobs": [-0.1] * 6}}, "wrote 6 tokens, expected max_tokens=5"),
    ],
)
def test_what_no_vllm_server_answers(answers, message):
    """One clear error each; without log-probabilities every confidence would be 0."""
    with pytest.raises(CollectError, match=message):
        ask(**answers)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda ids: [*ids[:-1], ids[0]], r"token {n} is 'What' \[\d+\], expected '.*' \[\d+\] of "),
        (lambda ids: ids[:-1], r"token {n} is '' \[\], expected '.*' \[\d+\] of "),
        (lambda ids: [*ids[:-1], -1], r"token {n} is '' \[-1\], expected '.*' \[\d+\] of "),
        (lambda _: None, r"carry no prompt_token_ids, expected a vLLM server of 0\.10\.2"),
    ],
)
def test_a_tokenizer_that_differs_late_is_told_by_its_first_other_token(change, told):
    """The first ids, which were shown, are the same."""
    ids = TOKENIZER.encode(PROBE)
    choice = {"token_ids": [1], "prompt_token_ids": change(ids)}
    with pytest.raises(CollectError, match=told.format(n=len(ids))):
        ask(probed={"model": "tiny-reasoner", "choices": [choice]})


@pytest.mark.parametrize("logprobs", [[-0.0, 1e-6], [-9999.0, -0.1]])
def test_probabilities_of_0_and_1_are_probabilities(logprobs):
    """Of which vLLM writes the first as -9999, and rounding may put the second above 1."""
    assert ask(logprobs={"token_logprobs": logprobs}).logprobs == logprobs


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_a_completion_that_a_dying_server_cuts_off_is_asked_for_again(reason):
    """It counts as a failure of the server, and never as a trace that came to its length."""
    with pytest.raises(httpx.HTTPError, match=f"finish_reason {reason!r}"):
        ask(finish_reason=reason)


Fault = Callable[[str | list[int], int], httpx.Response | None]


def dies_after_the_check(prompt: str | list[int], attempt: int) -> httpx.Response | None:
    return httpx.Response(503) if isinstance(prompt, list) or attempt > 1 else None


class Server:
    """One that answers every request with `CHOICE`, unless ``fault`` has an answer of its own for it.

    Args:
      fault: given the prompt, which is text where the server is only tried out, and the number of that attempt.
      ready: it answers no request for a trace before.
    """

    def __init__(self, fault: Fault = lambda *_: None, ready: Callable[[], bool] = lambda: True):
        self.fault, self.ready = fault, ready
        self.completions, self.going, self.largest = 0, 0, 0
        self.asked: Counter[str] = Counter()

    async def answer(self, request: httpx.Request) -> httpx.Response:
        brief = request.method == "GET" or isinstance(json.loads(request.content)["prompt"], str)
        assert request.extensions["timeout"]["read"] == (60 if brief else 3600)
        if request.method == "GET":
            return self.fault("models", self.count("models")) or httpx.Response(200, json=MODELS)
        prompt = json.loads(request.content)["prompt"]
        if isinstance(prompt, str):
            return self.fault(prompt, self.count("probe")) or httpx.Response(200, json=PROBED)
        self.completions += 1
        self.going += 1
        self.largest = max(self.largest, self.going)
        while not self.ready():
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)  # the others are sent meanwhile
        self.going -= 1
        answer = {"model": "tiny-reasoner", "choices": [CHOICE]}
        return self.fault(prompt, self.count(str(prompt))) or httpx.Response(200, json=answer)

    def count(self, what: str) -> int:
        self.asked[what] += 1
        return self.asked[what]


def ask_all(prompts: Iterable[list[int]], *servers: Server, **config) -> list[Response]:
    """Check servers, then ask them for a completion of every prompt, all at once."""
    found = ask_each(prompts, *servers, **config)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [one for one in found if isinstance(one, Response)]


def ask_each(prompts: Iterable[list[int]], *servers: Server, **config) -> list[Response | BaseException]:
    """As `ask_all`, with what it raised in place of an answer."""
    asked = {"target": "t", "out": "o", "split": "test", "endpoints": [f"http://s{i}" for i in range(len(servers))]}
    engine = EndpointEngine(CollectConfig.model_validate(asked | config))

    async def run() -> list[Response | BaseException]:
        for endpoint, server in zip(engine.all, servers, strict=True):
            endpoint.client = httpx.AsyncClient(transport=httpx.MockTransport(server.answer))
        try:
            await engine.check(TARGET, TOKENIZER)
            every = (engine.generate(prompt, Decoding(5)) for prompt in prompts)
            return await asyncio.gather(*every, return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(run())


PROMPTS = [[i] for i in range(64)]
ANSWER = Response([1, 2], [-0.1, -0.2], "stop")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr("torch_specexit.collecting.endpoints.FIRST_PAUSE", 0.001)


def test_an_outage_counts_its_pauses_and_not_the_requests_that_it_meets():
    """64 requests fail, then two probes: three failures in a row, of the six that are allowed."""

    def out(prompt, attempt):
        down = 1 < attempt < 4 if isinstance(prompt, str) else attempt == 1
        return httpx.Response(503) if down and prompt != "models" else None

    server = Server(out)
    assert len(ask_all(PROMPTS, server)) == 64
    assert (server.completions, server.asked["probe"]) == (128, 4)


def test_an_endpoint_is_given_up_after_as_many_pauses_as_allowed_and_the_others_do_its_work(capsys):
    dead = Server(dies_after_the_check)
    working = Server(ready=lambda: dead.asked["probe"] >= 6)
    assert len(ask_all(PROMPTS, dead, working, requests=16)) == 64
    said = capsys.readouterr().err
    assert said.count("http://s0: given up (") == said.count("\n") == 1
    assert dead.asked["probe"] == 6  # at the start, and after each of five pauses


def test_no_more_requests_at_once_than_allowed_when_endpoints_die():
    dying, staying = [Server(dies_after_the_check) for _ in range(3)], Server()
    assert len(ask_all(PROMPTS, *dying, staying, requests=4, retries=1)) == 64
    assert staying.largest == 4


def test_an_endpoint_that_is_given_up_leaves_nobody_waiting(make_trace, monkeypatch):
    """Its traces waited for room to the end of the run, and each completion had all of them look at all endpoints."""
    servers = [Server(dies_after_the_check), *(Server() for _ in range(3))]
    looks, done = [], []

    class Engine(EndpointEngine):
        def __init__(self, config: CollectConfig):
            super().__init__(config)
            for endpoint, server in zip(self.all, servers, strict=True):
                endpoint.client = httpx.AsyncClient(transport=httpx.MockTransport(server.answer))

        def _has_room(self, endpoint: Endpoint) -> bool:
            looks.append(endpoint)
            return super()._has_room(endpoint)

    class Tracer:
        tokenizer = TOKENIZER

        def __init__(self, _config, _target, engine: Engine, _report):
            self.engine = engine

        async def trace(self, ask: Ask) -> Trace:
            await self.engine.generate([int(ask.prompt.id)], Decoding(5))
            return make_trace(id=ask.prompt.id)

    monkeypatch.setattr(endpoints, "EndpointEngine", Engine)
    monkeypatch.setattr(endpoints, "Tracer", Tracer)
    urls = [f"http://s{i}" for i in range(4)]
    asked = {"target": "t", "out": "o", "split": "test", "endpoints": urls, "requests": 16, "retries": 1}
    todo = [(i, Ask(Prompt(str(i), "What?", None), 0)) for i in range(640)]
    endpoints.run_endpoints(
        CollectConfig.model_validate(asked), TARGET, todo, lambda number, _: done.append(number), lambda _: None
    )
    assert sorted(done) == list(range(640))
    assert len(looks) < 20 * len(done), "three endpoints, looked at by one trace and not by seventeen"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("servers", [1, 2])
def test_a_request_that_fails_wherever_it_is_made_is_at_fault_itself(servers, status, capsys):
    """It is made as often as allowed at every endpoint, all others once, and no endpoint is given up for it."""
    running = [Server(lambda prompt, _: httpx.Response(status) if prompt == [7] else None) for _ in range(servers)]
    found = ask_each(PROMPTS, *running, retries=3)
    said = str(found.pop(7))
    assert f"{status} " in said
    assert "the same request has failed 3 times, though the endpoint answered in between" in said
    assert found == [ANSWER] * 63
    assert [server.asked["[7]"] for server in running] == [3] * servers
    assert sum(server.completions for server in running) == 63 + 3 * servers
    assert not capsys.readouterr().err


def test_requests_at_fault_that_take_all_places_are_no_endpoints_fault(capsys):
    """Nothing else is under way that could show that the endpoints are well."""
    running = [Server(lambda prompt, _: httpx.Response(504) if prompt in PROMPTS[:4] else None) for _ in range(2)]
    found = ask_each(PROMPTS, *running, requests=2, retries=3)
    assert [isinstance(one, NoAnswer) for one in found] == [True] * 4 + [False] * 60
    assert not capsys.readouterr().err


def fails_but_for_probes(prompt: str | list[int], attempt: int) -> httpx.Response | None:
    if isinstance(prompt, list) and attempt > 1:
        raise httpx.RemoteProtocolError("cut off")
    return httpx.Response(500) if isinstance(prompt, list) else None


def test_what_fails_at_one_waits_for_another_that_is_full():
    failing, polls = Server(fails_but_for_probes), count()
    full = Server(ready=lambda: failing.asked["probe"] > 1 and next(polls) > 5000)
    assert ask_all(PROMPTS[:2], full, failing, requests=1, retries=2) == [ANSWER] * 2
    assert failing.completions == 1


def test_an_endpoint_that_answers_probes_alone_is_given_up_while_another_goes_on(capsys):
    failing = Server(fails_but_for_probes)
    working = Server(ready=lambda: failing.completions >= 6)
    assert ask_all(PROMPTS, working, failing, requests=1) == [ANSWER] * 64
    assert max(failing.asked[str(prompt)] for prompt in PROMPTS) == 1
    said = capsys.readouterr().err
    assert said.count("http://s1: given up (") == said.count("\n") == 1


def answering(**choice) -> httpx.Response:
    answer = {"model": "tiny-reasoner", "choices": [CHOICE | choice]}
    return httpx.Response(200, content=json.dumps(answer))  # NaN and all


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(200, text="<html>[/b] back soon</html>"), "the answer is not JSON: '<html>[/b] back soon"),
        (httpx.Response(200, text=""), "the answer is not JSON: ''"),
        (httpx.Response(200, text='{"model": "tiny-reas'), "the answer is not JSON"),
        (httpx.Response(200, text="[" * 100_000), "the answer is not JSON: '[[["),
        (httpx.Response(200, json={"error": "x"}), "the answer is no vLLM server's: model"),
        (httpx.Response(200, json={"model": "tiny-reasoner", "choices": []}), "carry no token_ids"),
        (httpx.Response(404, text="page\nnot found"), "404: page not found"),
        (httpx.Response(403, text="forbidden"), "403: forbidden"),
        (httpx.Response(302), "302 Found"),
        (httpx.Response(500, text="two\nlines"), "500 Internal Server Error of http://s0/v1/completions: two lines"),
        (httpx.Response(500, text="\x1b[2J"), r"/v1/completions: \x1b[2J"),
        (httpx.Response(504, text="nginx"), "completions: nginx; expected a gateway that waits as long as timeout="),
        (answering(token_ids=[], logprobs={"token_logprobs": []}), "a completion has no tokens"),
        (answering(token_ids=[1, 999_999]), "wrote token 999999, expected one of the target's"),
        (answering(token_ids=[1, -1]), "wrote token -1"),
        (answering(logprobs=None), "0 log-probabilities of 2 tokens"),
        (answering(logprobs={"token_logprobs": [math.nan, -0.1]}), "a token has the log-probability nan"),
    ],
)
def test_what_a_server_answers_after_the_check_is_its_own_failure_and_the_others_go_on(answer, reason, capsys):
    def fault(prompt, _):
        return httpx.Response(answer.status_code, content=answer.content) if isinstance(prompt, list) else None

    failing = Server(fault)
    working = Server(ready=lambda: failing.completions >= 3)  # the first two fail together, which is one failure
    assert ask_all(PROMPTS, failing, working, retries=2, requests=2) == [ANSWER] * 64
    said = capsys.readouterr().err
    assert said.count("\n") == said.count("http://s0: given up (") == 1
    assert reason in said
    with pytest.raises(CollectError, match="no endpoint is left, what was finished is kept"):
        ask_all(PROMPTS, Server(fault), retries=1)


@pytest.mark.parametrize("status", [400, 422])
def test_a_request_that_is_refused_is_made_once_at_every_endpoint(status):
    refusing = [Server(lambda *asked: httpx.Response(status, text="too long") if asked[0] == [7] else None)] * 2
    found = ask_each(PROMPTS, *refusing)
    assert str(found.pop(7)) in {f"http://s{i}/v1/completions: {status}: too long" for i in range(2)}
    assert found == [ANSWER] * 63
    assert refusing[0].asked["[7]"] == 2


def test_an_endpoint_that_refuses_what_others_answer_is_given_up(capsys):
    refusing = Server(lambda prompt, _: httpx.Response(400, text="too long") if isinstance(prompt, list) else None)
    assert ask_all(PROMPTS, refusing, Server()) == [ANSWER] * 64
    said = capsys.readouterr().err
    assert said.count("http://s0: given up (http://s0/v1/completions: 400: too long)") == said.count("\n") == 1


def test_a_server_that_becomes_another_model_ends_the_run():
    other = httpx.Response(200, json={"model": "llama", "choices": [CHOICE]})
    failing = Server(lambda prompt, _: other if isinstance(prompt, list) else None)
    with pytest.raises(CollectError, match="answered as model 'llama', expected"):
        ask_all([[1]], failing, Server())
    assert failing.completions == 1


def test_a_password_is_not_shown():
    asked = {"endpoints": ["http://me:secret@s0/v1"], "retries": 1}
    with pytest.raises(CollectError, match=r"^http://s0: HTTPStatusError: 503 .*; no endpoint is left") as error:
        ask_all([[1]], Server(lambda *_: httpx.Response(503)), **asked)
    assert "secret" not in str(error.value)


def test_a_server_that_sends_requests_on_is_a_wrong_address():
    moved = httpx.Response(307, headers={"Location": "https://me:secret@s0/v1/models"})
    server = Server(lambda *_: moved)
    with pytest.raises(CollectError, match=r"v1/models: 307: sends requests on to https://s0/v1/models, expected that"):
        ask_all([[1]], server)
    assert server.asked["models"] == 1


def test_an_answer_that_never_ends_takes_no_longer_than_a_request_may():
    """Read by read it is in time."""
    endpoint = Endpoint("http://s0", CollectConfig(target="t", out="o", split="test", timeout=0.01))
    endpoint.client = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: asyncio.Event().wait()))
    with pytest.raises(httpx.ReadTimeout, match=r"no whole answer within 0\.01 seconds"):
        asyncio.run(asyncio.wait_for(endpoint.probe(), 10))


def test_a_request_that_takes_too_long_says_which_key_gives_it_more_time():
    """The longest traces of a slow server fail so, each behind six hours, and the reason was a bare `ReadTimeout`."""

    def slow(prompt: str | list[int], _: int) -> None:
        if prompt == [7]:
            raise httpx.ReadTimeout("")

    found = ask_each(PROMPTS, Server(slow), retries=2)
    said = (
        "http://s0: ReadTimeout: no whole answer within 3600 seconds, expected a longer timeout= where texts take that;"
    )
    assert str(found.pop(7)).startswith(said)
    assert found == [ANSWER] * 63


@pytest.mark.parametrize("what", ["models", PROBE])
def test_a_server_that_is_not_ready_yet_is_tried_again_before_anything_is_asked(what, capsys):
    def starting(prompt, attempt):
        return httpx.Response(503) if prompt == what and attempt < 4 else None

    server, dead = Server(starting), Server(lambda *_: httpx.Response(503))
    assert len(ask_all(PROMPTS, server, dead)) == 64
    assert server.completions == 64
    assert dead.asked["models"] == 6
    assert capsys.readouterr().err.count("given up") == 1


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        *(("7", 7), ("86400", 120), ("0", None), ("soon", None), ("-1", None), ("²", None)),
        *(("Fri, 31 Dec 9999 23:59:59 GMT", 120), ("Fri, 31 Dec 9999 23:59:59 -0000", 120)),
        *(("Sun, 06 Nov 1994 08:49:37 GMT", None), ("Sun, 99 Nov 1994 08:49:37 GMT", None)),
    ],
)
def test_a_server_is_left_alone_for_as_long_as_it_asks_for_within_bounds(asked, waited, monkeypatch):
    pauses = []
    sleep = asyncio.sleep

    async def note(seconds):
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    busy = httpx.Response(429, headers={"Retry-After": asked.encode()})
    ask_all([[1]], Server(lambda prompt, attempt: busy if isinstance(prompt, list) and attempt == 1 else None))
    assert [pause for pause in pauses if pause > 0.1] == ([waited] if waited else [])


@pytest.mark.parametrize(
    ("endpoints", "message"),
    [
        ("[]", r"endpoints is \[\]: .*expected at least one URL"),
        ("127.0.0.1:8000", r"'127.0.0.1:8000' does not begin with http://"),
        ("ftp://a:8000", "does not begin with http://"),
        ("http://a:abc", r"'http://a:abc' has a port that is no number from 1 to 65535, expected a URL such as"),
        ("http://a:99999", "has a port"),
        ("http://a:0", "has a port"),
        ("[http://a, 'http://[::1']", r"'http://\[::1' cannot be read"),
        ("http://[zz]:1", "cannot be read"),
        ("http://a..b", "cannot be read"),
        ("http://", "names no host"),
        ("http://:8000", "names no host"),
        ("http://a b:8000", "names no host"),
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_starts(endpoints, message):
    with pytest.raises(ConfigError, match=message):
        load(CollectConfig, overrides=["target=t", "out=o", "split=test", f"endpoints={endpoints}"])


@pytest.mark.parametrize("url", ["http://a", "https://a.b/openai/v1", "http://[::1]:8000", "http://me:pass@a:1/v1/"])
def test_addresses(url):
    config = load(CollectConfig, overrides=["target=t", "out=o", "split=test", f"endpoints={url}"])
    assert config.endpoints == (url,)
    assert CollectConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("given", "environment", "sent"),
    [(None, None, None), ("a", None, "Bearer a"), (None, "b", "Bearer b"), ("a", "b", "Bearer a")],
)
def test_the_key_is_the_one_given_or_the_environments(given, environment, sent, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if environment is not None:
        monkeypatch.setenv("OPENAI_API_KEY", environment)
    config = CollectConfig.model_validate({"target": "t", "out": "o", "split": "test", "api_key": given})
    assert Endpoint("http://server", config).client.headers.get("Authorization") == sent


@pytest.mark.parametrize("status", [200, 400, 401, 500])
@pytest.mark.parametrize("answer", ["not for {}", '{{"error": "not for {}"}}'])
def test_a_key_that_a_server_repeats_is_not_shown(status, answer):
    repeating = Server(lambda *_: httpx.Response(status, text=answer.format("sk-secret")))
    with pytest.raises(CollectError, match=r"not for \.\.\.") as error:
        ask_all([[1]], repeating, api_key="sk-secret", retries=1)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("key", ["sk-secret\n", "sk-secretü"])
@pytest.mark.parametrize("name", ["api_key", "OPENAI_API_KEY"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(name, key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(CollectError, match=f"^{name} has a line end or a character beyond ASCII") as error:
        ask_all([[1]], Server(), api_key=key if name == "api_key" else None)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy"])
@pytest.mark.parametrize("proxy", ["socks5://me:sk-secret@gate:1080", "gopher://gate", "http://me:sk-secret/@gate"])
def test_a_proxy_that_cannot_be_used_is_one_line_and_not_shown(name, proxy, monkeypatch):
    """httpx looks at the environment's at once, and it was a traceback."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(name, proxy)
    with pytest.raises(
        CollectError, match=rf"^{name}: no proxy that httpx can use, expected .* or NO_PROXY=\*"
    ) as error:
        ask_all([[1]], Server())
    assert "secret" not in str(error.value)
    monkeypatch.setenv("NO_PROXY", "*")
    ask_all([[1]], Server())
