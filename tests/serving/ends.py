"""The two ends of vLLM between which a report travels, without an engine; and a front end with nothing set."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import PolicyFile, Serving
from tests.serving.stand_ins import stand_in
from torch_specexit.plugin import outcome
from torch_specexit.plugin.frontend import reports as frontend
from torch_specexit.plugin.frontend import server
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.protocols import (
    AsyncLLM,
    Detokenizer,
    EngineCoreClient,
    EngineCoreRequest,
    OutputProcessor,
    ParentRequest,
    RequestState,
)
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.protocols import EngineCoreOutput, EngineCoreOutputs, SamplingParams, SchedulerRequest

SIGNALS = (0.1, 0.2, 3.0, 0.9)
NAMED = {"confidence": 0.1, "progress": 0.2, "remaining": 3.0, "validity": 0.9}
START = 1
REQUEST = {
    "external_req_id": "chatcmpl-1",
    "prompt_token_ids": [START],
    "cache_salt": None,
    "priority": 0,
    "reasoning_ended": None,
    "reasoning_parser_kwargs": None,
}
"""What is kept of vLLM's ``EngineCoreRequest``."""


def front_end(**serving):
    return server.FrontEnd(Operation(SpecExitBlock(target="t"), PolicyFile(), Serving(**serving)), Activity())


def row(phase, thoughts, *, exited=0, judged=1.0, on=1, signals=SIGNALS, would_exit=0.0):
    """A row of the worker's snapshot."""
    return [phase, thoughts, 0, exited, judged, on, *signals, would_exit, thoughts if exited else 0.0]


def core_output(request, finish_reason=None, stop_reason=None):
    given = {"request_id": request, "finish_reason": finish_reason, "stop_reason": stop_reason}
    return stand_in(EngineCoreOutput, **given, kv_transfer_params=None)


def core_outputs(outputs):
    """Of one client, in a step."""
    return stand_in(EngineCoreOutputs, outputs=outputs, finished_requests=None)


def kept_request(**given):
    """What is read of vLLM's ``EngineCoreRequest`` as its request is admitted."""
    return stand_in(EngineCoreRequest, **REQUEST | given)


def admitted_state(external="chatcmpl-1"):
    """What is read of vLLM's ``RequestState`` as its request is admitted."""
    return stand_in(RequestState, external_req_id=external, parent_req=None)


def processor_of(front=None, **given):
    """An output processor, of a server with this front end, without running requests."""
    ours = {} if front is None else {KEY: front}
    return stand_in(OutputProcessor, **{"request_states": {}, "external_req_ids": {}} | given | ours)


class Engine:
    """The two ends of vLLM between which a report travels: the engine core's requests, the front end's states."""

    def __init__(self, n=1, stop=(), external="chatcmpl-1", transfer=None):
        self.requests, self.processor = {}, processor_of()
        parent = stand_in(ParentRequest, n=n) if n > 1 else None
        for i in range(n):
            name = f"{i}_{external}"
            extra = None if transfer is None else {"kv_transfer_params": transfer}
            params = stand_in(SamplingParams, stop=list(stop), extra_args=extra)
            self.requests[name] = stand_in(SchedulerRequest, num_output_tokens=0, sampling_params=params)
            self.processor.request_states[name] = stand_in(
                RequestState,
                request_id=name,
                external_req_id=external,
                parent_req=parent,
                request_index=i,
                prompt_token_ids=[START],
                detokenizer=stand_in(Detokenizer, output_token_ids=[]),
                max_tokens_param=100,
                lora_request=None,
            )
        self.processor.external_req_ids[external] = list(self.requests)
        self.stats, self.reporter = SimpleNamespace(), outcome.Reporter()

    def step(
        self,
        rows,
        finished=None,
        stopped=(),
        n_output=60,
        inactive=None,
        stop_reason=None,
        awaiting=None,
        running=(),
        dropped=0,
    ):
        """One step; returns what the outputs say. ``stopped``: choices in which the front end meets a stop string, and
        drops so many tokens behind it; ``running``: choices that have an output, and no row."""
        finished, outputs, names = finished or {}, [], list(self.requests)
        for i in (*rows, *running):
            self.requests[names[i]].num_output_tokens = n_output
            outputs.append(core_output(names[i], finished.get(i), stop_reason))
        records = {names[i]: record for i, record in rows.items()}
        self.reporter.take(records, self.requests)
        self.reporter.report(records, {0: core_outputs(outputs)}, inactive, awaiting)
        known = frontend.attach(self.processor, outputs)
        for i in (*finished, *stopped):
            state = self.processor.request_states.pop(names[i])
            if self.requests[names[i]].sampling_params.stop:
                state.detokenizer.output_token_ids = [0] * (n_output - dropped)
            self.processor.external_req_ids[state.external_req_id].remove(state.request_id)
        frontend.settle(self.processor, known, self.stats)
        return [(output.kv_transfer_params or {}).get(KEY) for output in outputs]


def status(front, path="/health", *, broken=False):
    """What vLLM's own routes answer, given a front end (or None), and whether something is wrong with the engine."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from vllm.entrypoints.serve.instrumentator import register_instrumentator_api_routers

    from torch_specexit.plugin.compat.request_hooks import REQUEST_HOOKS

    async def engine_says(self):
        if broken:
            raise RuntimeError("of the engine's own")

    (hook,) = (hook for hook in REQUEST_HOOKS if hook.method == "check_health")

    async def workers_say(*asked, engine):
        return [None if front.activity.reason is None else "as before"]

    core = stand_in(EngineCoreClient, core_engines=(b"one",), _call_utility_async=workers_say)
    engine = stand_in(AsyncLLM, output_processor=processor_of(front), engine_core=core)
    engine.check_health, app = partial(hook.wrap(engine_says), engine), FastAPI()
    register_instrumentator_api_routers(app)
    app.state.engine_client = engine
    return TestClient(app).get(path).status_code


GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
PLAIN = GREEDY | {"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
"""Of vLLM's ``SamplingParams``, what says which tokens are drawn."""


def incoming(external, **sampling):
    """What is read of vLLM's ``EngineCoreRequest`` when it comes in."""
    params = stand_in(SamplingParams, extra_args=None, **PLAIN | {"structured_outputs": None} | sampling)
    given = {"request_id": f"{external}-0123abcd", "external_req_id": external}
    return kept_request(lora_request=None, sampling_params=params, **given)
