"""The results of a benchmark in their file and on a terminal."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from specexit.bench.comparison import identities, oracle, summarise
from specexit.bench.requests import read_requests, reason_of, requests_in, write_requests
from specexit.bench.results import (
    DEFINITIONS,
    Comparison,
    Exits,
    Latency,
    MethodResult,
    ResultsError,
    read_results,
    result_tables,
    write_results,
)
from specexit.data.traces import Trace
from specexit.report import readme
from specexit.report.verdict import verdict
from tests.shared.measured import exit_run, full_run, request, some_results


def test_requests_that_were_computed_again_for_want_of_kv_cache_are_told_with_the_times() -> None:
    run = full_run()
    run.n_preempted = 1234
    results = some_results()
    for known in (None, 0, summarise(run).preempted):
        methods = results.methods | {"eagle3": results.methods["eagle3"].model_copy(update={"preempted": known})}
        found = results.model_copy(update={"methods": methods})
        _, _, times = result_tables(found)
        said = "for want of KV cache (eagle3 1,234 times)"
        assert (said in str(times.caption)) == (known == 1234)
        assert any(said in sentence for sentence in verdict(found, None)) == (known == 1234)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(times)
    assert "expected a larger engine.kv_cache_gib." in " ".join(console.export_text().split())


def test_an_oracle_of_traces_that_were_drawn_otherwise_than_the_responses_has_another_name(
    make_trace: Callable[..., Trace],
) -> None:
    traces = [make_trace(sampling=json.dumps({"temperature": temperature})) for temperature in (0, 0.6)]
    of_greedy, of_sampled = (oracle([trace], {}) for trace in traces)
    results = some_results()
    for known, temperature, name in (
        (of_greedy, 0, ""),
        (of_greedy, 0.6, "greedy "),
        (of_sampled, 0.6, ""),
        (of_sampled, 0, "sampled "),
        (of_sampled, 1.0, "differently sampled "),
    ):
        update = {
            "oracle": results.oracle.model_copy(update={"sampling": known.sampling}),
            "sampling": {"temperature": temperature},
        }
        found = results.model_copy(update=update)
        assert f"of the {name}oracle's cut" in readme.table(found)
        assert any(f"the {name}oracle cuts" in str(shown.title) for shown in result_tables(found))


def test_identities_count_outputs_that_differ() -> None:
    runs = {"none": full_run(), "eagle3": full_run()}
    runs["eagle3"].requests[16][1] = request(1, 300, total=321)
    found = identities(runs)
    assert (found["eagle3_vs_none"].n, found["eagle3_vs_none"].mismatches) == (3, 1)
    assert (found["eagle3_batch_1_vs_16"].n, found["eagle3_batch_1_vs_16"].mismatches) == (1, 0)


@pytest.mark.parametrize(
    ("outcome", "closed", "finish", "reason"),
    [
        ({"outcome": "exit"}, True, "stop", "exit"),
        ({"outcome": "natural_end"}, True, "stop", "natural_end"),
        ({"outcome": "exit"}, True, "length", "exit"),
        ({"outcome": "cap"}, True, "stop", "exit"),
        ({"outcome": "loop"}, True, "stop", "exit"),
        ({"outcome": "interrupt"}, True, "stop", "exit"),
        ({"outcome": "length"}, False, "length", "length"),
        (None, True, "length", "natural_end"),
        (None, False, "length", "length"),
        (None, False, "stop", "natural_end"),
    ],
)
def test_how_thinking_ended(outcome: dict | None, closed: bool, finish: str, reason: str) -> None:
    assert reason_of(outcome, closed=closed, finish_reason=finish) == reason


def test_requests_come_back_at_the_largest_batch_size(tmp_path: Path) -> None:
    run = exit_run()
    run.requests[1] = [dataclasses.replace(run.requests[1][0], answer="another")]
    write_requests(tmp_path / "requests.jsonl", {"specexit": run, "eagle3": full_run()})
    found = read_requests(tmp_path / "requests.jsonl", "specexit")
    assert list(found.values()) == exit_run().requests[16]


def test_results_come_back(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", some_results())
    assert read_results(tmp_path / "results.json") == some_results()
    raw = json.loads((tmp_path / "results.json").read_text())
    assert raw["schema"] == 1
    assert raw["against_eagle3"]["specexit"]["speedup"]["16"][0] == 2.0


def test_every_figure_has_a_definition() -> None:
    assert {*MethodResult.model_fields, *Comparison.model_fields, "fraction_reached", "one_point"} <= set(DEFINITIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "'schema' is 2"),
        ({"n": "many"}, "'n' is 'many'"),
        ({"methods": {"eagle3": {}}}, "methods.eagle3.accuracy"),
        ({"methods": {}}, "'methods' lacks 'eagle3'"),
        ({"against_eagle3": {}}, "'against_eagle3' lacks 'specexit'"),
        ({"n_seconds": {"4": 3}}, "'methods.eagle3.seconds' lacks '4'"),
        ({"oracle": {"thinking_cut": 0.7, "fraction_reached": {}}}, "'oracle.fraction_reached' lacks 'specexit'"),
        ({"tasks": {"sums": {}}}, "'tasks.sums' lacks 'eagle3'"),
        ({"oracle": {"thinking_cut": float("nan")}}, "holds NaN, expected numbers alone"),
    ],
)
def test_unusable_results_name_file_and_field(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "results.json"
    write_results(path, some_results())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ResultsError, match=message) as error:
        read_results(path)
    assert str(path) in str(error.value)


def test_a_field_that_is_missing_is_named_without_the_whole_file(tmp_path: Path) -> None:
    """The message ended behind twenty thousand characters of it."""
    path = tmp_path / "results.json"
    write_results(path, some_results())
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({key: raw[key] for key in raw if key != "hardware"}))
    with pytest.raises(ResultsError) as error:
        read_results(path)
    assert str(error.value) == f"{path}: field 'hardware' is missing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.replace('"thinking_tokens"', '"tokens"'), "'thinking_tokens' is missing$"),
        (lambda line: line.replace('"method"', '"name"'), "'method' is missing$"),
        (lambda line: line[:-9], ""),
        (lambda line: "7", ""),
    ],
)
def test_a_request_that_lacks_a_field_or_was_cut_is_named_by_its_line(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    """Of hundreds of thousands of lines none was named, and of the field what Python calls a missing argument."""
    line = json.dumps(
        {"method": "none", "batch": 1, "id": "1", "token_ids": [], "thinking_tokens": 3, "reason": "exit"}
    )
    whole = f'{line[:-1]}, "answer": null, "correct": false, "signals": {{}}}}'
    path = tmp_path / "requests.jsonl"
    path.write_text(f"{whole}\n{change(whole)}\n")
    with pytest.raises(
        ResultsError, match=rf"requests\.jsonl: line 2 cannot be read as a request of a benchmark: {message}"
    ):
        list(requests_in(path, ("none",)))


def test_truncated_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, some_results())
    path.write_text(path.read_text()[:100])
    with pytest.raises(ResultsError, match="cannot be read as JSON"):
        read_results(path)


def test_tables_fit_a_terminal_of_80_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    for table in result_tables(some_results()):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    for expected in ("eagle3", "specexit", "66.7", "0.0..100.0", "95.0 %", "2.00", "3/0/0", "55/s"):
        assert expected in text


def test_a_method_is_called_in_the_tables_what_it_is_called() -> None:
    """Brackets in a name were read as markup, so that the table had another name than report and results."""
    few = some_results()
    named = few.methods | {"m [m=2]": few.methods["specexit"]}
    against = few.against_eagle3 | {"m [m=2]": few.against_eagle3["specexit"]}
    reached = few.oracle.fraction_reached | {"m [m=2]": 0.95}
    oracle = few.oracle.model_copy(update={"fraction_reached": reached})
    changed = few.model_copy(update={"methods": named, "against_eagle3": against, "oracle": oracle, "target": "t [x]"})
    console = Console(width=120, record=True, file=io.StringIO())
    tables = list(result_tables(changed))
    for table in tables:
        console.print(table)
    text = console.export_text()
    assert text.count("m [m=2]") >= 3
    assert "t [x]: " in text


def test_tables_fit_with_many_batch_sizes_and_probes() -> None:
    few = some_results()
    sizes, rates = ["1", "8", "32"], ["1.25", "2.5", "12.5"]
    wait = Latency(mean=123.45, p50=1.0, p95=234.56, first_answer=1.0, n=100)
    update = {"probe_tokens": 141.2, "answer_tokens": 1234.5, "seconds": dict.fromkeys(sizes, 1234.5)}
    update |= {"throughput": dict.fromkeys(sizes, 23456.0), "open_loop": dict.fromkeys(rates, wait)}
    update["exits"] = Exits(exit=1000, natural_end=1000, length=1000)
    more = {name: method.model_copy(update=update) for name, method in few.methods.items()}
    ratio = (12.34, 11.11, 13.99)
    update = {"speedup": dict.fromkeys(sizes, ratio), "open_loop": dict.fromkeys(rates, ratio)}
    against = {name: versus.model_copy(update=update) for name, versus in few.against_eagle3.items()}
    more["kth-boundary"], against["kth-boundary"] = more["specexit"], against["specexit"]
    reached = dict.fromkeys(against, 0.95)
    many = few.model_copy(
        update={
            "n_seconds": {"1": 100, "8": 100, "32": 1000},
            "methods": more,
            "against_eagle3": against,
            "oracle": few.oracle.model_copy(update={"fraction_reached": reached}),
        }
    )
    console = Console(width=80, record=True, file=io.StringIO())
    for table in result_tables(many):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert text.count("12.34") == 6 * len(against)
    assert text.count("1234.5") == 4 * len(more)
    for each in ("23456/s", "123.45", "234.56"):
        assert text.count(each) == 3 * len(more)
