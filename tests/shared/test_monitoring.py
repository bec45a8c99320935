"""``configs/jobs/monitoring``: alerts that fire on what they are for, and a dashboard of metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import promql_parser
import pytest
import yaml

from specexit.config import REPOSITORY

FOLDER = REPOSITORY / "configs" / "jobs" / "monitoring"
METRIC = re.compile(r"vllm:specexit_[a-z_]+")
METRICS = REPOSITORY / "torch_specexit" / "plugin" / "frontend" / "metrics.py"
DOCS = REPOSITORY / "docs"


def known() -> set[str]:
    """Names of all metrics, as Prometheus has them: counters end in _total, histograms in _bucket, _sum and _count."""
    source = METRICS.read_text()
    found = set()
    for kind, name in re.findall(r'(counter|histogram|gauge)\(\s*"([a-z_]+)"', source):
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[kind]
        found |= {f"vllm:specexit_{name}{ending}" for ending in endings}
    found |= {f"vllm:specexit_{name}_total" for name in re.findall(r'"vllm:specexit_([a-z_]+)"', source)}
    for signal in ("confidence", "progress", "remaining", "validity"):
        found |= {f"vllm:specexit_exit_{signal}{ending}" for ending in ("_bucket", "_sum", "_count")}
    return found


@pytest.mark.parametrize("command", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts-test.yaml")])
def test_prometheus_takes_the_rules_and_they_fire_on_what_they_are_for(command):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install promtool)")
    done = subprocess.run([promtool, *command], cwd=FOLDER, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> dict[str, str]:
    """Every expression that Prometheus is asked, by the alert or the panel that asks it."""
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    asked = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    targets = ((panel["title"], i, target["expr"]) for panel in panels for i, target in enumerate(panel["targets"]))
    return asked | {f"{title}-{i}": expr for title, i, expr in targets}


@pytest.mark.parametrize("name", expressions())
def test_every_expression_is_one_that_prometheus_can_parse(name):
    """Without promtool, which few machines have, a slip of a bracket used to be seen by nobody."""
    expression = expressions()[name]
    selected = []
    promql_parser.walk(promql_parser.parse(expression), lambda node: selected.append(getattr(node, "name", None)))
    assert known().intersection(selected), expression
    with pytest.raises(ValueError, match="paren"):
        promql_parser.parse(expression + ")")


def test_failed_audits_are_held_against_those_that_have_asked():
    """An audit whose thinking states nothing asks for no answer: held against these, too, failures were never most."""
    failed, _, _ = expressions()["SpecExitAuditsFail"].partition("or\n")
    assert re.findall(r'result=~?"([^"]*)"', failed) == ["failed", "same|changed"]


def test_the_quotient_that_the_page_gives_is_one_that_a_panel_asks():
    """Two counters of different labels have no quotient but as sums, and what it gave was empty."""
    (told,) = re.findall(r"^```promql\n(.*)\n```$", (DOCS / "serving-watching.md").read_text(), re.M)
    panels = [re.sub(r'model_name=~"\$model",?', "", asked).replace("{}", "") for asked in expressions().values()]
    assert told in panels


def test_the_shares_of_different_models_are_not_mixed():
    """Points are called alike, as `risk-0.02`: the changed answers of one model were divided by the audits of all."""
    shares = [
        asked
        for asked in expressions().values()
        if re.search("specexit_(audits_total.* / |epsilon_changed|exit_validity)", asked, re.DOTALL)
    ]
    assert len(shares) >= 6
    for asked in shares:
        assert set(re.findall(r"\b(?:sum|max)\b(?: by \((\w+))?", asked)) == {"model_name"}


@pytest.mark.parametrize("file", ["alerts.yaml", "alerts-test.yaml", "dashboard.json"])
def test_only_metrics_that_exist_are_asked_for(file):
    asked = set(METRIC.findall((FOLDER / file).read_text()))
    assert len(asked) >= 5
    assert asked <= known()


def test_every_panel_has_a_question_and_a_title():
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    assert len(panels) >= 8
    for panel in panels:
        assert panel["title"]
        assert all(target["expr"] for target in panel["targets"])


def section(page: str, heading: str) -> str:
    """A section of one of the operator's pages."""
    _, _, behind = (DOCS / page).read_text().partition(f"\n## {heading}\n")
    return behind.partition("\n## ")[0]


def families() -> set[str]:
    """Names of all metrics, each histogram once."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in known()}


def test_the_runbook_says_of_every_alert_what_to_do():
    runbook = section("serving-runbook.md", "Alerts")
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    listed = dict(re.findall(r"^\| \[`(\w+)`\]\(#\w+\) \| (\w+) \| .*\|$", runbook, re.M))
    assert listed == {rule["alert"]: rule["labels"]["severity"] for rule in group["rules"]}
    for rule in group["rules"]:
        (told,) = re.findall(rf"^### `{rule['alert']}`\n\n((?:(?!### ).*\n)+)", runbook, re.M)
        assert told.strip()
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert rule["annotations"]["runbook"] == f"docs/serving-runbook.md#{rule['alert'].lower()}"


def test_the_runbook_says_of_every_metric_that_there_is_what_to_do():
    """It used to name three, and the table of metrics three more by their endings alone."""
    told = section("serving-runbook.md", "Metrics that are not as they should be")
    rows = re.findall(r"^\| (`vllm:specexit_[^|]*) \| [^|]+ \| [^|]+ \|$", told, re.M)
    assert sorted(name for row in rows for name in METRIC.findall(row)) == sorted(families())


def test_the_page_says_of_every_metric_what_it_counts():
    listed = METRIC.findall(section("serving-watching.md", "Metrics"))
    assert set(listed) == families()
