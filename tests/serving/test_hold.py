"""A server that holds its risk by itself: false alarms, how soon drift is found, and what is risked meanwhile."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from specexit.config import REPOSITORY
from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import PolicyFile, Serving
from specexit.method.statistics import Capital
from specexit.method.statistics.sequential import AT_ONCE, SHARES, kept_back, played, stakes
from tests.serving.points import BLOCK, POINTS, certificate, point
from torch_specexit.plugin.frontend.hold import Hold
from torch_specexit.plugin.frontend.operation import Operation

EPSILON, DELTA = 0.02, 0.1
RUNS, LOOKS = 1000, 2000


def rejections(
    rate: float, capital: Capital | None = None, *, runs: int = RUNS, looks: int = LOOKS, level: float = DELTA
) -> np.ndarray:
    """Audits until a capital, by default a new one, rejects, in many runs at once; infinity for never. The server looks
    after each audit."""
    changed = (np.random.default_rng(0).random((looks, runs)) < rate).astype(float)
    capital = capital or Capital(EPSILON)
    log = np.tile(capital.log_capital, (runs, 1))
    first = np.full(runs, np.inf)
    for look, hit in enumerate(changed, start=1):
        audits = capital.observations + look
        log = np.minimum(played(log, audits - 1, hit, capital.mean, capital.side), 100)  # long rejected
        rich = np.exp(log).mean(axis=1) + kept_back(audits) >= 1 / level
        first[rich & np.isinf(first)] = look
    return first


def capital_after(changed: np.ndarray, epsilon: float) -> Capital:
    """A capital behind many audits, from what its bets have won up to the last one since each part was put in."""
    capital = Capital(epsilon)
    won = np.log1p(stakes(epsilon, "above") * (changed[:, None] - epsilon)).cumsum(axis=0)
    put_in = -np.diff(kept_back(np.arange(len(changed) + 1)))
    put_in[0] += AT_ONCE
    before = np.vstack([np.zeros(len(SHARES)), won[:-1]])
    capital.log_capital = won[-1] + np.logaddexp.reduce(np.log(put_in)[:, None] - before)
    capital.observations = len(changed)
    return capital


def test_a_capital_behind_many_audits_is_the_one_that_a_server_keeps():
    changed, capital = np.random.default_rng(0).random(500) < EPSILON, Capital(EPSILON)
    for value in changed:
        capital.add(float(value))
    np.testing.assert_allclose(capital_after(changed, EPSILON).log_capital, capital.log_capital)


def test_the_vectorised_runs_are_those_of_the_capital_that_a_server_keeps():
    changed = np.random.default_rng(0).random((LOOKS, 3)) < 0.05
    expected = []
    for run in range(3):
        capital, stream = Capital(EPSILON), changed[:, run]
        for value in stream:
            capital.add(float(value))
            if capital.rejects(DELTA):
                break
        expected.append(capital.rejects(DELTA))
    assert [math.isfinite(look) for look in rejections(0.05, runs=3)] == expected


@pytest.mark.parametrize("rate", [EPSILON, EPSILON / 2])
def test_where_the_risk_is_kept_false_alarms_are_rarer_than_delta_over_all_looks(rate):
    alarms = np.isfinite(rejections(rate)).mean()
    # Ville's inequality bounds the probability; three standard errors for the 1,000 runs it is estimated from.
    assert alarms <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / RUNS)


def test_of_several_api_servers_all_together_give_false_alarms_no_more_often_than_delta():
    """Each used to bet at delta by itself: four of them gave alarm without need nearly four times as often."""
    n, operation = 4, hold()[1]
    audits, seen = feed(Hold(operation, api_servers=n), operation, True), Capital(0.05)
    for look in range(1, audits + 1):  # of point bold; it moves at the first look that shows it at delta / 4
        seen.add(1.0)
        assert seen.rejects(DELTA / n) == (look == audits)
    false = np.isfinite(rejections(EPSILON, runs=RUNS * n, looks=LOOKS // n, level=DELTA / n))
    # Ville's inequality for each, and a sum over all; three standard errors for the 1,000 servers.
    assert false.reshape(RUNS, n).any(axis=1).mean() <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / RUNS)


@pytest.mark.parametrize("rate", [0.05, 0.1])
def test_drift_is_found_within_the_audits_that_theory_allows_and_little_is_risked_meanwhile(rate):
    """To grow to 1/delta, the best bet has to make that, and once more for each bet among which what is betted at once
    is spread: log(bets/delta/at once), of which it gains its growth rate with each audit."""
    won, lost = (np.log1p(stakes(EPSILON, "above") * (changed - EPSILON)) for changed in (1, 0))
    allowed = np.log(len(SHARES) / DELTA / AT_ONCE) / (rate * won + (1 - rate) * lost).max()
    found = rejections(rate)
    assert np.isfinite(found).mean() >= 0.99
    assert found[np.isfinite(found)].mean() <= allowed
    # Risk spent before the alarm, in answers changed above what epsilon allows, for an audit rate of 2 %.
    spent = (rate - EPSILON) * np.median(found) / 0.02
    print(f"risk {rate:.0%}: found after {np.median(found):.0f} audits (median), {spent:.0f} answers above epsilon")


@pytest.mark.parametrize("epsilon", [0.01, 0.02])
def test_the_page_says_how_soon_a_drift_is_found_that_begins_after_a_long_good_time(epsilon):
    """It used to take some 38,000 audits, as all of the stake was lost by then."""
    page = (REPOSITORY / "docs" / "serving-watching.md").read_text()
    rows = re.findall(rf"^\| {100 * epsilon:.0f} % \| (\d+) % \| (.*) \|$", page, re.M)
    good = [np.random.default_rng(1).random(audits) < epsilon / 2 for audits in (1_000, 100_000, 1_000_000)]
    starts = [Capital(epsilon), *(capital_after(changed, epsilon) for changed in good)]
    for percent, cells in rows:
        told = [int(cell.replace(",", "")) for cell in cells.split(" | ")]
        found = [np.median(rejections(int(percent) / 100, start, runs=300)) for start in starts]
        np.testing.assert_allclose(found, told, rtol=0.06)  # the page's runs are 1,000: their medians differ by 4 %
        assert found[2] <= 5 * found[0]
    assert [percent for percent, _ in rows] == ["5", "10"]


def hold(**serving):
    file = PolicyFile.model_validate({"points": POINTS, "default": "bold"})
    moves: list[str] = []
    operation = Operation(BLOCK, file, Serving.model_validate({"audit_rate": 1.0} | serving))
    return Hold(operation, moves.append), operation, moves


def feed(holder, operation, changed, until=10_000):
    """Audits of whatever is served, until the server moves; returns how many."""
    for n in range(1, until):
        before = (operation.served().name, operation.mode)
        holder.add(operation.served().name, changed=changed)
        if (operation.served().name, operation.mode) != before:
            return n
    raise AssertionError("the server has not moved")


def test_a_server_steps_to_stricter_points_then_to_shadow_and_comes_back_by_a_passed_audit(caplog):
    holder, operation, moves = hold()
    served = [operation.served().name]
    for _ in range(3):
        feed(holder, operation, True)
        served.append(operation.served().name)
    assert served == ["bold", "usual", "careful", "careful"]
    assert operation.mode == "shadow"
    assert operation.resolve(None).mode == "shadow"
    # Zero changes: as many as it takes to show a risk below 0.005 at level 0.1.
    assert 460 < feed(holder, operation, False) < 2000
    assert (operation.mode, operation.served().name) == ("exit", "careful")
    assert moves == ["stricter", "stricter", "shadow", "back"]
    assert "now in shadow mode" in caplog.text
    assert operation.ceiling == "careful"  # to a bolder point only an operator goes back
    operation.switch(point="bold")
    assert operation.served().name == "bold"


@pytest.mark.parametrize("mode", ["shadow", "off"])
@pytest.mark.parametrize("by", ["the file", "the route"])
def test_no_audit_makes_exits_that_the_operator_has_switched_off(mode, by):
    """Shadow mode of the file, or of the route, used to end by good audits, and ``off`` by bad ones under way."""
    holder, operation, moves = hold(**({"mode": mode} if by == "the file" else {}))
    operation.switch(mode if by == "the route" else None, "careful")
    for changed, move in ((True, "shadow"), (False, "back"), (True, "shadow")):
        audited(holder, moves, "careful", changed)
        assert (moves[-1], operation.mode) == (move, mode)
        assert operation.resolve(None).mode == mode
    operation.switch("exit")
    assert (operation.mode, operation.in_shadow) == ("exit", False)


@pytest.mark.parametrize("mode", ["exit", "shadow"])
@pytest.mark.parametrize("name", ["bold", "careful"])
def test_where_audits_have_imposed_shadow_mode_no_request_exits(mode, name):
    """A request that asked for exits used to get them under `requests: any`, where the default point was shown to be
    too bold, and in the operator's own shadow mode."""
    holder, operation, moves = hold(requests="any", mode=mode, efforts={"high": "careful"}, audit_rate=0.0)
    while moves[-1:] != ["shadow"]:
        holder.add(operation.served().name if name == "bold" else name, changed=True)
    for asks in ({}, {"specexit_mode": "exit"}, {"specexit_mode": "exit", "specexit_validity": 0.0}):
        found = operation.resolve({"specexit_effort": "low" if name == "bold" else "high"} | asks)
        assert found.mode == "shadow"
    assert operation.resolve({"specexit": False}).mode == "off"


def audited(holder, moves, name, changed):
    """Audits of a point until it moves."""
    before = len(moves)
    while len(moves) == before:
        holder.add(name, changed=changed)


def served_to(operation, effort):
    found = operation.resolve({"specexit_effort": effort})
    return found.point, found.mode


def test_audits_of_another_point_say_nothing_about_the_one_that_serves():
    """They say something of that other one, which used to be watched by nobody."""
    holder, operation, moves = hold(efforts={"high": "careful", "medium": "usual"}, audit_rate=0.0)
    audited(holder, moves, "usual", True)
    assert (moves, operation.served().name) == (["stricter"], "bold")
    assert (served_to(operation, "medium"), served_to(operation, "low")) == (("careful", "exit"), ("bold", "exit"))
    audited(holder, moves, "careful", True)
    assert (moves, operation.mode) == (["stricter", "shadow"], "exit")
    assert (served_to(operation, "high"), served_to(operation, "low")) == (("careful", "shadow"), ("bold", "exit"))
    assert operation.resolve({"specexit_effort": "high", "specexit_mode": "exit"}).mode == "shadow"
    audited(holder, moves, "careful", False)
    assert (moves[-1], served_to(operation, "high")) == ("back", ("careful", "exit"))
    operation.switch("exit")
    assert served_to(operation, "medium") == ("usual", "exit")


def test_where_no_point_is_left_the_server_is_in_shadow_mode_in_whatever_order_audits_have_shown_it(caplog):
    """Where the strictest point had been shown to be too bold first, when only some asked for it, nothing was cut any
    more and the server said `mode: exit`, and `now careful`."""
    holder, operation, moves = hold(efforts={"high": "careful"}, audit_rate=0.0)
    operation.switch(point="usual")
    audited(holder, moves, "careful", True)
    assert (moves, operation.mode, operation.in_shadow) == (["shadow"], "exit", False)
    assert "requests for it are now in shadow mode" in caplog.text
    caplog.clear()
    audited(holder, moves, "usual", True)
    assert (moves, operation.mode, holder.summary()["in_shadow"]) == (["shadow", "shadow"], "shadow", True)
    assert "; now in shadow mode" in caplog.text
    assert served_to(operation, "low") == ("careful", "shadow")
    audited(holder, moves, "careful", False)
    assert (moves[-1], operation.mode, operation.served().name) == ("back", "exit", "careful")


def test_a_bolder_point_of_an_effort_steps_alone_and_under_a_ceiling_with_all():
    holder, operation, moves = hold(efforts={"low": "bold", "high": "careful"}, audit_rate=0.0)
    operation.switch(point="usual")
    for _ in range(200):
        holder.add("bold", changed=True)
        holder.add("gone with the last policy file", changed=True)
    assert moves == ["stricter"]  # audits that were under way then say nothing more
    assert (served_to(operation, "low")[0], operation.served().name, operation.mode) == ("usual", "usual", "exit")
    feed(holder, operation, True)
    assert [served_to(operation, effort)[0] for effort in ("low", "medium", "high")] == ["careful"] * 3
    assert holder.summary()["stepped"] == {"bold": "usual"}


def test_a_server_never_moves_to_a_point_whose_certificate_audits_cannot_judge():
    """It used to, and was watched no more from there on."""
    points = [point("usual", 0.9, 0.02), point("careful", 0.97, 0.005, "accuracy_lost")]
    file = PolicyFile.model_validate({"points": points, "default": "usual"})
    operation = Operation(SpecExitBlock(target="t"), file, Serving(audit_rate=1.0))
    feed(Hold(operation), operation, True)
    assert (operation.served().name, operation.mode) == ("usual", "shadow")


@pytest.mark.parametrize("left", ["another policy's", "an older version's"])
def test_a_server_never_moves_to_a_point_whose_certificate_it_calls_void(left):
    """One whose threshold had been edited down to 0.1 served in place of a certified one that was shown too bold."""
    careful = point("careful", 0.1) | {"certificate": POINTS[2]["certificate"]}
    if left == "an older version's":
        careful = POINTS[2] | {"certificate": certificate(0.005)}
    strictest = point("strictest", 0.99, 0.001)
    for others, served in (([], ("usual", "shadow")), ([strictest], ("strictest", "exit"))):
        file = PolicyFile.model_validate({"points": [POINTS[1], careful, *others], "default": "usual"})
        operation = Operation(BLOCK, file, Serving(audit_rate=1.0))
        feed(Hold(operation), operation, True)
        assert (operation.served().name, operation.mode) == served


def test_a_server_may_be_told_not_to_move():
    holder, _, moves = hold(hold=False)
    for _ in range(200):
        holder.add("bold", changed=True)
    assert moves == []
    assert holder.summary()["watching"] is None


def test_lost_accuracy_cannot_be_judged_by_whether_answers_change():
    file = PolicyFile.model_validate(
        {"points": [POINTS[1] | {"certificate": certificate(0.01, "accuracy_lost")}], "default": "usual"}
    )
    holder = Hold(Operation(SpecExitBlock(target="t"), file, Serving(audit_rate=1.0)))
    for _ in range(200):
        holder.add("usual", changed=True)
    assert holder.operation.mode == "exit"
    assert holder.summary()["watching"] is None


def test_a_point_of_another_name_goes_on_with_the_bet_on_its_policy_and_certificate():
    """What is imposed goes by these two, and delta was spent anew with every name."""
    holder, operation, _ = hold()
    for name in ("usual", "standard", "usual"):
        points = [POINTS[0], POINTS[1] | {"name": name}, *POINTS[2:]]
        operation.load(PolicyFile.model_validate({"points": points, "default": "bold"}), operation.serving)
        holder.add(name, changed=False)
    assert {name: seen["audits"] for name, seen in holder.summary()["points"].items()} == {"usual": 3}


def test_two_names_of_one_claim_make_one_bet_and_move_together():
    """Each could be rejected without need with probability delta; and where one of them serves by default, what the
    audits of the other have shown concerned that other one alone."""
    points = [*POINTS, POINTS[1] | {"name": "again"}]
    operation = Operation(
        BLOCK, PolicyFile.model_validate({"points": points, "default": "usual"}), Serving(audit_rate=1.0)
    )
    holder = Hold(operation)
    holder.add("usual", changed=True)
    assert operation.ceiling is None
    holder.add("again", changed=True)
    assert (operation.ceiling, operation.served().name) == ("careful", "careful")


def test_two_names_of_one_claim_come_back_from_shadow_mode_together():
    points = [*POINTS, POINTS[2] | {"name": "again"}]
    moves: list[str] = []
    operation = Operation(
        BLOCK, PolicyFile.model_validate({"points": points, "default": "careful"}), Serving(audit_rate=1.0)
    )
    holder = Hold(operation, moves.append)
    audited(holder, moves, "again", True)
    assert (moves, operation.mode) == (["shadow"], "shadow")
    while moves == ["shadow"]:
        holder.add("again", changed=False)
        holder.add("careful", changed=False)
    assert (moves[-1], operation.mode) == ("back", "exit")
