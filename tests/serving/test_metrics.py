"""What Prometheus is told, without an engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess

from specexit.config import REPOSITORY
from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import PolicyFile, Serving
from tests.serving.points import POINTS, certificate
from tests.serving.stand_ins import stand_in
from torch_specexit.plugin.frontend import server
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.drafting import WINDOW
from torch_specexit.plugin.frontend.metrics import AUDITS, MOVES, OUTCOMES, ExitMetrics, record, token_buckets
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.protocols import SpecDecodingStats, StatLogger
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.protocols import ModelConfig, VllmConfig


def stat_logger(registry):
    """What is read of vLLM's `PrometheusStatLogger`."""
    kinds = {"_counter_cls": Counter, "_gauge_cls": Gauge, "_histogram_cls": Histogram}
    model = stand_in(ModelConfig, served_model_name="tiny", max_model_len=1024)
    return stand_in(
        StatLogger,
        **{name: partial(kind, registry=registry) for name, kind in kinds.items()},
        per_engine_labelvalues={0: ["tiny", "0"]},
        vllm_config=stand_in(VllmConfig, model_config=model),
    )


NAMED = {"confidence": 0.1, "progress": 0.2, "remaining": 3.0, "validity": 0.9}


def test_token_buckets_reach_as_far_as_the_context():
    assert token_buckets(1000) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


def test_metrics_count_outcomes_and_both_estimates_of_what_was_saved():
    registry = CollectorRegistry()
    metrics = ExitMetrics(stat_logger(registry))
    exit_report = {"outcome": "exit", "thinking_tokens": 60, "signals": NAMED}
    metrics.finished(0, exit_report)
    metrics.finished(0, {"outcome": "natural_end", "thinking_tokens": 100, "signals": NAMED, "would_exit": 40})
    metrics.finished(0, exit_report)
    metrics.audited("usual", "changed")

    def value(name, **labels):
        common = {"model_name": "tiny"} | ({} if "result" in labels else {"engine": "0"})
        return registry.get_sample_value(f"vllm:specexit_{name}", common | labels)

    counted = {name: value("requests_total", outcome=name) for name in OUTCOMES}
    assert counted == dict.fromkeys(OUTCOMES, 0) | {"exit": 2, "natural_end": 1}
    assert value("thinking_tokens_sum", outcome="exit") == 120
    assert value("exit_validity_sum") == pytest.approx(1.8)
    assert value("exit_remaining_bucket", le="2.0") == 0
    assert value("exit_remaining_bucket", le="5.0") == 2
    assert value("estimated_tokens_saved_total", basis="remaining") == 6
    # The first exit came before any shadow request; the second saves 60 for every 40 kept.
    assert value("estimated_tokens_saved_total", basis="shadow") == 60 * 60 / 40
    assert value("shadow_exits_total") == 1
    assert [value("shadow_thinking_tokens_total", part=part) for part in ("before", "behind")] == [40, 60]
    assert value("audits_total", point="usual", result="changed") == 1


def test_what_was_seen_at_one_point_is_no_estimate_of_what_another_saves():
    """An operator's change of point used to leave the estimate at what the other one had saved."""
    registry = CollectorRegistry()
    metrics = ExitMetrics(stat_logger(registry))
    labels = {"model_name": "tiny", "engine": "0", "basis": "shadow"}

    def saved(point):
        name = "vllm:specexit_estimated_tokens_saved_total"
        before = registry.get_sample_value(name, labels)
        metrics.finished(0, {"outcome": "exit", "thinking_tokens": 100, "signals": NAMED, "point": point})
        return registry.get_sample_value(name, labels) - before

    for point, would_exit in (("bold", 20), ("careful", 80), (None, 50)):
        report = {"outcome": "natural_end", "thinking_tokens": 100, "signals": NAMED, "would_exit": would_exit}
        metrics.finished(0, report | {"point": point})
    assert [saved(point) for point in ("bold", "careful", None, "new")] == [400, 25, 100, 0]
    file = PolicyFile.model_validate({"points": POINTS, "default": "usual"})
    metrics.watch(server.FrontEnd(Operation(SpecExitBlock(target="t"), file, Serving()), Activity()))
    assert saved("bold") == 0  # the name says nothing where the file is another
    metrics.finished(0, report | {"point": "bold"})
    assert saved("bold") == 100
    edited = file.model_copy(update={"serving": Serving(share=0.5)})
    metrics.front.operation.load(edited, edited.serving)
    assert saved("bold") == 100  # its points are what they were


def test_metrics_say_what_is_served_and_when_it_is_not():
    registry = CollectorRegistry()
    metrics = ExitMetrics(stat_logger(registry))

    def value(name, **labels):
        return registry.get_sample_value(f"vllm:specexit_{name}", {"model_name": "tiny"} | labels)

    front = server.FrontEnd(Operation(SpecExitBlock(target="t"), PolicyFile(), Serving()), Activity())
    front.activity.tell = metrics.active
    metrics.watch(front)
    assert value("active", reason="ok") == value("exits_made") == value("epsilon") == 1
    assert value("certified") == value("hold_moves_total", move="shadow") == 0
    front.activity.awaits("asleep")
    assert value("active", reason="ok") == value("active", reason="weights") == 0
    front.activity.awaits(None)
    assert value("active", reason="ok") == value("active", reason="weights") == 1
    front.activity.fail("failed", "a long story")
    front.operation.switch("shadow")
    metrics.finished(0, {"outcome": "exit", "thinking_tokens": 6, "signals": NAMED, "point": None, "certified": False})
    assert value("active", reason="ok") == value("active", reason="failed") == value("exits_made") == 0
    assert value("point_requests_total", engine="0", point="own", outcome="exit") == 1
    assert value("uncertified_requests_total", engine="0") == 1
    metrics.finished(0, {"outcome": "length", "thinking_tokens": 6, "point": "usual", "certified": True})
    metrics.finished(0, {"outcome": "off", "thinking_tokens": 6})
    assert value("uncertified_requests_total", engine="0") == 1


def test_metrics_go_on_where_vllm_makes_new_ones_in_a_server_that_gets_more_engines():
    """`/scale_elastic_ep` unregisters all metrics and makes a new logger. From then on what is served, and audits, went
    to the old ones, exits that had failed were said to be active, and a draft that guesses nothing to be fine."""
    before, registry = stat_logger(CollectorRegistry()), CollectorRegistry()
    file = PolicyFile.model_validate({"points": POINTS, "default": "usual"})
    front = server.FrontEnd(Operation(SpecExitBlock(target="t"), file, Serving(audit_rate=1.0)), Activity())
    old = ExitMetrics(before)
    old.watch(front)
    old.drafted(WINDOW, 0)
    old.finished(0, {"outcome": "natural_end", "thinking_tokens": 100, "signals": NAMED, "would_exit": 40})
    front.activity.awaits("asleep")
    logger = stat_logger(registry)
    logger.vllm_config = before.vllm_config
    new = ExitMetrics(logger)

    def value(name, **labels):
        return registry.get_sample_value(f"vllm:specexit_{name}", {"model_name": "tiny"} | labels)

    assert [value(name) for name in ("exits_made", "certified", "epsilon")] == [1, 1, 0.02]
    assert value("epsilon_changed", point="bold") == 0.05
    assert value("traffic_moved", feature="boundaries") == 0
    assert (value("acceptance_near_one"), value("acceptance_length")) == (1, 1)
    new.finished(0, {"outcome": "exit", "thinking_tokens": 60, "signals": NAMED})
    assert value("estimated_tokens_saved_total", engine="0", basis="shadow") == 90
    assert value("active", reason="ok") == value("active", reason="weights") == 0
    front.activity.awaits(None)
    assert value("active", reason="ok") == 1
    front.counted("usual", "changed")
    assert value("audits_total", point="usual", result="changed") == 1
    while not front.operation.ceiling:
        front.audited("usual", "changed", file.point("usual").policy)
    assert value("hold_moves_total", move="stricter") == 1
    front.switch(mode="off")
    assert (value("exits_made"), value("epsilon")) == (0, 0.005)
    another = CollectorRegistry()
    ExitMetrics(stat_logger(another))  # of another engine in this process
    assert another.get_sample_value("vllm:specexit_exits_made", {"model_name": "tiny"}) is None


def test_gauges_say_what_an_operator_or_the_hold_has_just_changed_without_waiting_for_a_request():
    registry = CollectorRegistry()
    metrics = ExitMetrics(stat_logger(registry))
    file = PolicyFile.model_validate({"points": POINTS, "default": "usual"})
    front = server.FrontEnd(Operation(SpecExitBlock(target="t"), file, Serving(audit_rate=1.0)), Activity())
    metrics.watch(front)

    def gauges():
        names = ("exits_made", "certified", "epsilon")
        return tuple(registry.get_sample_value(f"vllm:specexit_{name}", {"model_name": "tiny"}) for name in names)

    assert gauges() == (1, 1, 0.02)
    while not front.operation.ceiling:
        front.audited("usual", "changed", file.point("usual").policy)
    assert gauges() == (1, 1, 0.005)
    front.switch(mode="off", point="untested")
    assert gauges() == (0, 0, 1)


@pytest.mark.parametrize(("risk", "expected"), [("answer_changed", 0.02), ("accuracy_lost", 1)])
def test_audits_are_held_against_a_certificate_of_changed_answers_alone(risk, expected):
    """They know no right answers; the alert used to compare their changed ones with the epsilon of a lost accuracy."""
    registry = CollectorRegistry()
    certified = POINTS[1] | {"certificate": certificate(0.02, risk)}
    file = PolicyFile.model_validate({"points": [certified], "default": "usual"})
    front = server.FrontEnd(Operation(SpecExitBlock(target="t"), file, Serving()), Activity())
    ExitMetrics(stat_logger(registry)).watch(front)
    assert registry.get_sample_value("vllm:specexit_epsilon", {"model_name": "tiny"}) == 0.02
    labels = {"model_name": "tiny", "point": "usual"}
    assert registry.get_sample_value("vllm:specexit_epsilon_changed", labels) == expected


def test_audits_of_a_point_are_held_against_its_own_certificate():
    """Those of a bold effort counted against the default point, whose epsilon alone the alert knew."""
    registry = CollectorRegistry()
    metrics = ExitMetrics(stat_logger(registry))
    file = PolicyFile.model_validate({"points": POINTS, "default": "usual"})
    front = server.FrontEnd(Operation(SpecExitBlock(target="t"), file, Serving()), Activity())
    metrics.watch(front)

    def value(name, **labels):
        return registry.get_sample_value(f"vllm:specexit_{name}", {"model_name": "tiny"} | labels)

    metrics.audited("bold", "changed")
    assert [value("audits_total", point="bold", result=result) for result in AUDITS] == [0, 1, 0, 0, 0, 0, 0, 0]
    assert {value("audits_total", point="usual", result=result) for result in AUDITS} == {0}
    names = [point["name"] for point in POINTS]
    assert [value("epsilon_changed", point=name) for name in names] == [0.05, 0.02, 0.005, 1]
    another = POINTS[1] | {"certificate": certificate(0.03)}
    front.operation.load(PolicyFile.model_validate({"points": [another], "default": "usual"}), Serving())
    front.changed()
    assert value("epsilon_changed", point="usual") == 0.03


def test_acceptance_near_one_raises_an_alarm_once_and_its_end_is_said(caplog):
    registry = CollectorRegistry()
    logger = stat_logger(registry)
    setattr(logger, KEY, ExitMetrics(logger))

    def steps(n, accepted):
        stats = SimpleNamespace(
            spec_decoding_stats=stand_in(SpecDecodingStats, num_drafts=n, num_accepted_tokens=accepted)
        )
        record(logger, stats, None, 0)
        names = ("acceptance_length", "acceptance_near_one")
        return [registry.get_sample_value(f"vllm:specexit_{name}", {"model_name": "tiny"}) for name in names]

    assert steps(WINDOW - 1, 0) == [0, 0]  # too few to say anything
    assert steps(1, 40) == [1 + 40 / WINDOW, 1]
    assert steps(WINDOW, 0) == [1, 1]
    assert steps(WINDOW, WINDOW) == [2, 0]
    record(logger, SimpleNamespace(spec_decoding_stats=None), None, 0)  # a step without drafts
    said = [json.loads(line.message) for line in caplog.records if "specexit_acceptance" in line.message]
    assert [(line["near_one"], line["length"]) for line in said] == [(True, 1.02), (False, 2.0)]
    assert "specexit verify" in said[0]["detail"]


API_SERVERS = """
import json, os, sys
from types import SimpleNamespace
from prometheus_client import Counter, Gauge, Histogram
from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import PolicyFile, Serving
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.drafting import WINDOW
from torch_specexit.plugin.frontend.metrics import ExitMetrics
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.server import FrontEnd

model = SimpleNamespace(served_model_name="tiny", max_model_len=1024)
logger = SimpleNamespace(
    _counter_cls=Counter,
    _gauge_cls=Gauge,
    _histogram_cls=Histogram,
    per_engine_labelvalues={0: ["tiny", "0"]},
    vllm_config=SimpleNamespace(model_config=model),
)
signals = {"confidence": 0.1, "progress": 0.2, "remaining": 3.0, "validity": 0.9}
file, begun = map(json.loads, sys.argv[1:])


def serve_one_exit(switch, traffic, failed, accepted):
    metrics = ExitMetrics(logger)
    front = FrontEnd(Operation(SpecExitBlock(target="t"), PolicyFile.model_validate(file), Serving()), Activity())
    metrics.watch(front)
    front.switch(**switch)
    front.traffic.distance["boundaries"], front.traffic.moved["boundaries"] = traffic, traffic > 0.2
    if failed:
        front.activity.fail("failed", "a long story")
    metrics.finished(0, {"outcome": "exit", "thinking_tokens": 60, "signals": signals})
    metrics.drafted(WINDOW, accepted)


for folder, how in begun:
    if not (child := os.fork()):
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        serve_one_exit(**how)
        sys.exit()
    assert not os.waitpid(child, 0)[1]
"""
KILLED = {"switch": {"mode": "off", "point": "careful"}, "traffic": 0.1, "failed": False, "accepted": 2 * WINDOW}
TROUBLED = {"switch": {"point": "untested"}, "traffic": 0.5, "failed": True, "accepted": 0}
WORSE = {"certified": 0, "epsilon": 1, "exits_made": 1, "acceptance_near_one": 1}
"""What an operator has to know of two processes of which one is killed, and one is troubled."""


def test_metrics_of_several_api_server_processes_are_summed_and_no_gauge_hides_one_of_them(tmp_path):
    """As vLLM sums its own: through files in the folder that it names in the environment.

    A kill that had reached one of several processes used to show as if none made exits. Which of them has written last
    is one and the same to all gauges but the acceptance length.
    """
    begun = {tmp_path / "one": (KILLED, TROUBLED), tmp_path / "other": (TROUBLED, KILLED)}
    for folder in begun:
        folder.mkdir()
    processes = [(str(folder), how) for folder, both in begun.items() for how in both]
    given = (json.dumps(each) for each in ({"points": POINTS, "default": "usual"}, processes))
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", API_SERVERS, *given], check=True, env=environment)
    for folder, (_, last) in begun.items():
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=str(folder))
        value = partial(value_in, registry)
        assert value("requests_total", engine="0", outcome="exit") == 2
        assert value("thinking_tokens_sum", engine="0", outcome="exit") == 120
        assert value("requests_total", engine="0", outcome="length") == 0
        assert {name: value(name) for name in WORSE} == WORSE
        assert value("active", reason="ok") == value("active", reason="failed") == 0
        assert value("traffic_distance", feature="boundaries") == 0.5
        assert value("traffic_moved", feature="boundaries") == 1
        assert value("acceptance_length") == 1 + last["accepted"] / WINDOW
        assert value("epsilon_changed", point="careful") == 0.005


def value_in(registry, name, **labels):
    return registry.get_sample_value(f"vllm:specexit_{name}", {"model_name": "tiny"} | labels)


MONITORING = REPOSITORY / "configs" / "jobs" / "monitoring"
METRIC = re.compile(r"`(vllm:specexit_[a-z_]+)(?:\{([a-z,]+)\})?`")


def labels_by_name() -> dict[str, set[str]]:
    """Metric, as Prometheus calls it -> the labels of its series."""
    registry = CollectorRegistry()
    ExitMetrics(stat_logger(registry))
    endings = {Counter: ("_total",), Gauge: ("",), Histogram: ("", "_bucket", "_sum", "_count")}
    found = {}
    for metric in set(registry._names_to_collectors.values()):
        for ending in endings[type(metric)]:
            found[metric._name + ending] = {*metric._labelnames, *(["le"] if ending == "_bucket" else [])}
    return found


def test_rules_and_dashboard_ask_by_labels_and_values_that_there_are():
    """A label or an outcome of another name selects nothing, and an alert that selects nothing never fires."""
    known, values = labels_by_name(), {"outcome": OUTCOMES, "result": AUDITS, "move": MOVES, "reason": ("ok",)}
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    asked = [rule["expr"] for rule in group["rules"]] + [at["expr"] for panel in panels for at in panel["targets"]]
    met = set()

    def check(node, by=()):
        """Every selector below a node, from whose series those above it want labels."""
        grouped = getattr(getattr(node, "modifier", None), "labels", None)
        by = grouped if grouped and hasattr(node, "expr") else by
        below = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
        for one in filter(None, [*below, *getattr(node, "args", ())]):
            check(one, by)
        name = getattr(node, "name", None)
        if name in known:
            met.add(name)
            matched = {matcher.name: matcher.value for matcher in node.matchers.matchers}
            assert {*matched, *by} <= known[name], name
            for label in matched.keys() & values.keys():
                assert set(matched[label].split("|")) <= {*values[label]}, (name, label)

    for expression in asked:
        check(promql_parser.parse(expression))
    assert len(met) >= 12


def test_the_page_names_the_labels_of_every_metric():
    page = (REPOSITORY / "docs" / "serving-watching.md").read_text()
    (told,) = re.findall(r"^## Metrics\n(.*?)^## ", page, re.M | re.S)
    cells = [line.split(" | ")[0] for line in told.splitlines() if line.startswith("| `vllm:")]
    listed = {name: set(filter(None, labels.split(","))) for cell in cells for name, labels in METRIC.findall(cell)}
    known = {name: labels - {"model_name", "engine"} for name, labels in labels_by_name().items() if "le" not in labels}
    assert listed == {name: labels for name, labels in known.items() if not name.endswith(("_sum", "_count"))}
