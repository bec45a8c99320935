"""What audits have imposed ends by an operator's word, another calibration or a passed audit: by nothing else."""

from __future__ import annotations

import json

import pytest

from specexit.drafts import locking
from specexit.drafts.hold import FILE, held_points
from specexit.drafts.policy import PolicyError, read_policy
from tests.serving.points import BLOCK, POINTS, certificate, point
from tests.serving.test_opening import config_with, engine_with, starting
from tests.serving.test_watch import draft as draft
from tests.serving.test_watch import written
from torch_specexit.plugin.frontend import imposed, opening
from torch_specexit.plugin.frontend import watch as watching
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.callers import mark_of
from torch_specexit.plugin.frontend.imposed import FOLDER, Kept
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.server import FrontEnd
from torch_specexit.plugin.frontend.watch import PolicyWatch, policies_for


@pytest.fixture(autouse=True)
def audited_draft(draft, monkeypatch):
    """A draft whose servers audit, and look at the policy file at once."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    write(draft)
    return draft


def write(folder, serving=None, **changes):
    written(folder, serving={"audit_rate": 1.0, "efforts": {"low": "bold"}} | (serving or {}), **changes)


def start(folder):
    """The front end of a server that starts, as `opening` begins it."""
    watch = PolicyWatch(folder, BLOCK, {}, {})
    file, serving = policies_for(folder, BLOCK, {})
    kept = Kept(folder)
    operation = Operation(BLOCK, file, serving, (), kept)
    opening.resume(operation, opening.Opening(folder, BLOCK, file, serving, watch, [], None, kept, kept.read()))
    return FrontEnd(operation, Activity(), watch=watch)


def audit(front, name, *, changed=True):
    """Audits of a point until the server moves."""
    moves: list[str] = []
    front.hold.moved = moves.append
    while not moves:
        front.hold.add(name, changed=changed)


def look(front):
    """What the server serves by default and at low effort, having looked at its file."""
    front.check(None)
    default, low = (front.operation.resolve(given) for given in (None, {"specexit_effort": "low"}))
    return (default.point, default.mode), (low.point, low.mode)


PLAIN = ("usual", "shadow"), ("bold", "shadow")
"""Where audits have imposed nothing; all requests are audited here, and so in shadow mode."""


def test_a_restart_brings_no_exits_back_and_a_passed_audit_does(draft, caplog):
    """A crash, or a rollout, used to undo whatever audits had imposed, without a word."""
    front = start(draft)
    audit(front, "bold")
    assert look(front) == look(start(draft)) == (("usual", "shadow"), ("usual", "shadow"))
    assert start(draft).hold.summary()["stepped"] == {"bold": "usual"}
    audit(front, "usual")
    audit(front, "careful")
    caplog.clear()
    front = start(draft)
    assert (front.operation.served().name, front.operation.mode) == ("careful", "shadow")
    said = f"shown a risk above epsilon at bold, usual, careful ({draft / FILE}); point careful, mode shadow"
    assert said in caplog.text
    audit(front, "careful", changed=False)
    for again in (front, start(draft)):
        assert (again.operation.mode, again.operation.ceiling) == ("exit", "careful")


def test_a_bolder_point_that_is_calibrated_anew_serves_once_audits_have_cleared_the_stricter_one(draft):
    """It served in shadow mode itself, passed its audits again and again, and no exit ever came of it."""
    front = start(draft)
    audit(front, "usual")
    audit(front, "careful")
    write(draft, points=[POINTS[0], POINTS[1] | {"certificate": certificate(0.03)}, *POINTS[2:]])
    front.check(None)
    assert (front.operation.served().name, front.operation.mode) == ("careful", "shadow")
    audit(front, "careful", changed=False)
    for again in (front, start(draft)):
        assert (again.operation.served().name, again.operation.mode) == ("usual", "exit")


def test_what_another_server_finds_while_an_engine_starts_is_taken_over(draft, monkeypatch, caplog):
    """In a rolling update the new server began with the exits that audits of the old one had just ended."""
    config, opened = starting(draft, monkeypatch)
    audit(start(draft), "usual")
    assert opening.open_front_end(engine_with(config), opened).operation.ceiling == "careful"
    write(draft, default="careful")
    audit(start(draft), "careful")
    opening.open_front_end(engine_with(config), opened)  # which began before that word
    assert start(draft).operation.rejected == ["careful"]
    (draft / FILE).write_text("{")
    assert opening.open_front_end(engine_with(config), opened).operation.ceiling is None  # as it was before
    assert f"since the start cannot be read: {draft / FILE}: cannot be read as JSON" in caplog.text


def test_a_word_that_lifts_nothing_and_falls_into_a_start_leaves_what_is_imposed_there_too(draft, monkeypatch):
    """Its engine stood, it read the word with its first request, and what it had from before was under other words: so
    of two servers the new one gave low effort what is bolder than the point that was rejected."""
    front = start(draft)
    front.api_servers = 2
    audit(front, "usual")
    config, opened = starting(draft, monkeypatch)
    front.switch(point="careful")
    new = opening.open_front_end(engine_with(config), opened)
    new.check(None)
    assert new.operation.name == front.operation.name == "careful"
    assert new.operation.ceiling == front.operation.ceiling == "careful"


@pytest.mark.parametrize(
    ("model", "revision", "elsewhere", "said"),
    [
        ("user/draft", None, False, True),
        ("user/draft", "main", True, True),
        ("user/draft", "v1", False, True),
        ("user/draft", "v1", True, False),
        (None, None, False, False),
    ],
)
def test_a_draft_in_the_hubs_cache_is_said_to_lose_what_is_written_beside_it(
    model, revision, elsewhere, said, draft, monkeypatch, caplog
):
    """Another revision on the Hub, be it of the model card alone, is another folder of the cache: the next restart made
    the very exits again that a kill switch, or audits, had ended."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision, cache_dir: str(draft))
    monkeypatch.setattr(opening, "served_fingerprints", lambda folder, config: {})
    monkeypatch.setattr(opening, "misfit_of", lambda config: None)
    monkeypatch.delenv(FOLDER, raising=False)
    if elsewhere:
        monkeypatch.setenv(FOLDER, str(draft.parent))
    config = config_with(model or draft)
    config.speculative_config.draft_model_config.revision = revision
    assert opening.settings_of(config) is not None
    assert ("lies in the cache of the Hub" in caplog.text) == said
    assert (FOLDER in caplog.text) == said


def test_where_no_audit_can_be_made_no_request_thinks_on_for_one(draft, monkeypatch, caplog):
    """A share of its requests had no exits, and nobody compared anything. `test_audits` has the other models."""
    config, opened = starting(draft, monkeypatch)
    front = opening.open_front_end(engine_with(config), opened)  # which has no tokenizer
    admitted = front.operation.resolve(None)
    assert (admitted.mode, admitted.audited, front.audit) == ("exit", False, None)
    assert "audits are off, they need a tokenizer" in caplog.text


@pytest.mark.parametrize("down", [False, True], ids=["while it runs", "while it is down"])
@pytest.mark.parametrize(
    ("change", "lifts"),
    [
        ({"serving": {"tenants": {mark_of("cut off"): "off"}}}, False),
        ({"serving": {"share": 0.5}}, False),
        ({"points": [*POINTS, POINTS[0] | {"name": "another"}]}, False),
        ({"serving": {"hold": False}}, True),
        ({"serving": {"mode": "shadow"}}, True),
        ({"default": "careful"}, True),
        # Another calibration of the point: audits have shown nothing of it.
        ({"points": [POINTS[0], POINTS[1] | {"certificate": certificate(0.03)}, *POINTS[2:]]}, True),
        ({"points": [*POINTS[:2], point("careful", 0.97, 0.004)]}, False),
    ],
)
def test_an_edit_lifts_what_it_speaks_of_and_nothing_else(change, lifts, down, draft):
    """The runbook's own way to stop the exits of one tenant used to bring back those of the whole server."""
    front = start(draft)
    audit(front, "usual")
    write(draft, **change)
    front = start(draft) if down else front
    front.check(None)
    assert front.operation.ceiling == (None if lifts else "careful")
    assert start(draft).operation.ceiling == (None if lifts else "careful")
    write(draft)  # and back
    front.check(None)
    calibrated = "points" in change  # so it is the calibration that audits have spoken of
    assert front.operation.ceiling == start(draft).operation.ceiling == ("careful" if calibrated or not lifts else None)


def test_an_edit_does_not_make_audits_begin_anew(draft):
    front = start(draft)
    front.audited("usual", "changed", front.operation.file.point("usual").policy)
    write(draft, serving={"share": 0.5})
    front.audited("usual", "no_exit", front.operation.file.point("usual").policy)
    assert front.hold.summary()["points"]["usual"]["audits"] == 2
    write(draft, serving={"share": 0.5}, default="careful")
    front.check(None)
    assert front.hold.summary()["points"] == {}


@pytest.mark.parametrize("n", [1, 2])
def test_a_word_by_the_route_that_lifts_nothing_does_not_make_audits_begin_anew(n, draft):
    """A job that said `mode: exit` every minute kept the hold from ever finding anything."""
    front = start(draft)
    front.api_servers = n
    for audits in (1, 2, 3):
        front.audited("usual", "no_exit", front.operation.file.point("usual").policy)
        front.switch(mode="exit")
        assert front.hold.summary()["points"]["usual"]["audits"] == audits
    audit(front, "usual")
    front.switch(mode="exit")
    assert front.hold.summary()["points"] == {}


def test_an_operators_word_by_the_route_lifts_it_for_good(draft):
    front = start(draft)
    audit(front, "usual")
    front.switch(point="usual")
    assert look(front) == look(start(draft)) == PLAIN
    assert not (draft / FILE).exists()


def event(what, when="09:00"):
    return {"when": when, "what": what}


WORDS = [
    event("calibrate answer_changed <= 0.02", "07:00"),
    event("switch mode=exit point=-", "08:00"),
    event("switch mode=- point=usual", "08:30"),
    event("switch mode=- point=usual", "08:30"),  # of two operators in one second
    event("switch mode=exit point=-"),
]


@pytest.mark.parametrize("down", [False, True], ids=["while it runs", "while it is down"])
@pytest.mark.parametrize("left", [[], WORDS[1:3], WORDS[3:]], ids=["none", "first", "last"])
@pytest.mark.parametrize(
    ("then", "lifts"),
    [
        ({"history": [event("calibrate answer_changed <= 0.02", "10:00")]}, False),
        ({"history": [event("switch mode=off point=-", "10:00")], "serving": {"mode": "off"}}, False),
        ({"history": [event("switch mode=exit point=-", "10:00")]}, True),
        ({"history": WORDS[3:4]}, True),  # once more
        ({"default": "careful"}, True),
    ],
)
def test_a_history_that_is_shortened_lifts_nothing(then, lifts, left, down, draft, monkeypatch, caplog):
    """It is what the error of a full file advises, and rejected exits were made again."""
    write(draft, history=WORDS)
    front = start(draft)
    audit(front, "usual")
    write(draft, history=left)
    assert held_points(draft, read_policy(draft)) == ["usual"]
    if down:
        front = start(draft)
    front.check(None)
    assert front.operation.ceiling == start(draft).operation.ceiling == "careful"
    assert "is lifted" not in caplog.text
    write(draft, **then | {"history": left + then.get("history", [])})
    front.check(None)
    assert front.operation.ceiling == start(draft).operation.ceiling == (None if lifts else "careful")


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("word", [{"mode": "off"}, {"mode": "shadow"}, {"point": "careful"}], ids=str)
def test_a_word_that_makes_exits_rarer_lifts_nothing(word, n, draft):
    """A kill switch used to delete what was kept: the next restart, which forgets the switch, made the very exits
    again that audits had ended. Through `policy.json`, from one API server process to the others, any word did, and a
    stricter default gave those who ask for low effort back what is bolder than all that had been rejected."""
    front, other = start(draft), start(draft)
    front.api_servers = other.api_servers = n
    audit(front, "usual")
    audit(other, "bold")
    front.switch(**word)
    other.check(None)
    assert front.operation.ceiling == start(draft).operation.ceiling == "careful"
    assert look(front)[1][0] == (None if word == {"mode": "off"} else "careful")
    assert [each.operation.rejected for each in (front, other)] == [["usual"], ["bold"]]
    assert start(draft).operation.rejected == ["bold", "usual"]
    front.switch(mode="exit", point="usual")
    assert look(front) == look(start(draft)) == PLAIN


@pytest.mark.parametrize(
    ("word", "n", "rejected"), [({"point": "careful"}, 2, ["bold"]), ({"mode": "exit"}, 1, [])], ids=str
)
def test_a_word_speaks_of_points_too_that_were_not_in_the_file_when_the_server_started(word, n, rejected, draft):
    """One that lifts nothing left what was imposed on such a point where a restart deleted it; and one that lifts all
    left it where a restart went on with it."""
    audit(start(draft), "bold")
    write(draft, points=POINTS[1:], serving={"efforts": {}})
    front = start(draft)
    front.api_servers = n
    front.switch(**word)
    file = read_policy(draft)
    write(draft, default=file.default, history=file.history)
    front.check(None)
    assert front.operation.rejected == start(draft).operation.rejected == rejected


def test_an_edit_between_two_starts_lifts_what_was_imposed_on_points_that_it_takes_out(draft):
    """It came back with them."""
    audit(start(draft), "bold")
    write(draft, points=POINTS[1:], default="careful", serving={"efforts": {}})
    start(draft)
    write(draft)
    assert start(draft).operation.rejected == []


def test_a_word_for_the_point_that_audits_have_put_into_shadow_mode_lifts_that(draft):
    front = start(draft)
    audit(front, "usual")
    audit(front, "careful")
    front.switch(point="careful")
    assert (front.operation.mode, front.operation.served().name) == ("exit", "careful")
    assert not (draft / FILE).exists()


def test_api_servers_that_share_a_draft_keep_what_each_of_them_has_seen(draft):
    first, second = start(draft), start(draft)
    audit(first, "bold")
    audit(second, "usual")
    assert start(draft).operation.rejected == ["bold", "usual"]
    assert (first.operation.rejected, second.operation.rejected) == (["bold"], ["usual"])
    for front in (first, second):
        audit(front, "careful")
    audit(second, "careful", changed=False)
    assert start(draft).operation.rejected == ["bold", "usual"]  # what the audits of one have cleared is gone for all
    assert first.operation.rejected == ["bold", "careful"]


def test_servers_of_other_settings_leave_each_other_what_they_have_seen(draft, monkeypatch, caplog):
    """A canary in shadow mode deleted what was kept of the server beside it, whose next restart brought back the exits
    that audits had ended."""
    audit(start(draft), "usual")
    with monkeypatch.context() as m:
        m.setenv("SPECEXIT_SERVING", '{"mode": "shadow"}')
        canary = start(draft)
        assert canary.operation.rejected == []
        assert f"imposed on servers of another mode or hold stays theirs ({draft / FILE})" in caplog.text
        audit(canary, "bold")
        assert start(draft).operation.rejected == ["bold"]
    assert start(draft).operation.rejected == ["usual"]
    canary.switch(point="bold")
    assert start(draft).operation.rejected == ["usual"]


@pytest.mark.parametrize("alike", [True, False], ids=["of the same words", "of other words"])
def test_servers_of_different_drafts_with_one_folder_leave_each_other_what_they_have_seen(
    alike, draft, write_random_draft, tmp_path, monkeypatch, caplog
):
    """The second to start, or a word to it, deleted what was kept of the first, whose next restart brought back the
    exits that audits had ended."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    other = write_random_draft(tmp_path / "other", "draft")
    points = [point("usual", 0.8, 0.03), point("careful", 0.9, 0.01), point("bold", 0.5, 0.1)]
    write(other, points=points, default="usual" if alike else "bold")

    def first():
        return start(draft).operation.ceiling

    audit(start(draft), "usual")
    second = start(other)
    assert (second.operation.ceiling, first()) == (None, "careful")
    assert "is lifted" not in caplog.text
    start(draft).switch(mode="exit")
    audit(second, "usual")
    assert (start(other).operation.rejected, first()) == (["usual"], None)
    audit(start(draft), "usual")
    second.api_servers = 2
    second.switch(mode="off")  # which carries what is imposed
    assert (start(other).operation.rejected, first()) == (["usual"], "careful")
    second.switch(mode="exit")
    assert (start(other).operation.rejected, first()) == ([], "careful")
    write(other, points=points, default="careful")
    second.check(None)
    assert first() == "careful"
    start(draft).switch(mode="exit")
    assert first() is None


def test_no_word_to_one_draft_brings_back_what_was_lifted_from_another(
    draft, write_random_draft, tmp_path, monkeypatch
):
    """It had read both drafts' claims at its start, and carried them all on."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    other = write_random_draft(tmp_path / "other", "draft")
    write(other, points=[point("usual", 0.8, 0.03), point("careful", 0.9, 0.01), point("bold", 0.5, 0.1)])
    one = start(draft)
    audit(one, "usual")
    two = start(other)
    one.switch(mode="exit")
    two.api_servers = 2
    two.switch(point="usual")
    assert start(draft).operation.rejected == []


@pytest.mark.parametrize("alike", [True, False], ids=["of the same words", "of other words"])
@pytest.mark.parametrize("named", [True, False], ids=["by all", "by the others"])
def test_the_folder_of_one_draft_may_be_named_for_all(named, alike, draft, write_random_draft, tmp_path, monkeypatch):
    """A word to that one, or its start, deleted what was kept of the others."""
    monkeypatch.setenv(FOLDER, str(draft))
    other = write_random_draft(tmp_path / "other", "draft")
    write(other, points=[point("usual", 0.8, 0.03), point("careful", 0.9, 0.01), point("bold", 0.5, 0.1)])
    write(draft, default="usual" if alike else "careful")
    audit(start(other), "usual")
    with monkeypatch.context() as owner:
        if not named:
            owner.delenv(FOLDER)
        front = start(draft)
        audit(front, "bold")
        assert start(draft).operation.rejected == ["bold"]
        front.switch(mode="exit")
        assert start(draft).operation.rejected == []
    assert start(other).operation.rejected == ["usual"]


def test_what_is_imposed_before_a_word_is_heard_ends_nothing_that_is_imposed_after_it(draft):
    """An API server process that had not read the file yet wrote over what another one had imposed since, and then
    deleted it."""
    first, second = start(draft), start(draft)
    write(draft, default="careful")
    second.check(None)
    audit(second, "careful")
    audit(first, "usual")
    first.check(None)
    assert first.operation.rejected == []
    assert start(draft).operation.rejected == ["careful"]


def test_where_nothing_can_be_kept_a_server_says_so_and_an_operator_may_name_another_folder(
    draft, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv(FOLDER, str(tmp_path / "nowhere"))
    front = start(draft)
    assert f"{tmp_path / 'nowhere' / FILE} cannot be written: what audits impose ends with a restart" in caplog.text
    assert front.hold.summary()["kept"] is False
    audit(front, "usual")
    assert f"{FILE} is not up to date, and a restart goes by it: " in caplog.text
    assert (front.operation.ceiling, start(draft).operation.ceiling) == ("careful", None)
    (tmp_path / "nowhere").mkdir()
    front = start(draft)
    assert front.hold.summary()["kept"] is True
    audit(front, "usual")
    assert start(draft).operation.ceiling == "careful"
    assert not (draft / FILE).exists()


def full(*args, **how):
    raise OSError(28, "No space left on device")


def test_what_could_not_be_written_for_a_while_is_written_as_soon_as_it_can_be(draft, monkeypatch, caplog):
    """It was said once, and then nothing until the next move: a restart made the rejected exits again."""
    monkeypatch.setattr(imposed, "SECONDS", 0.0)
    front = start(draft)
    with monkeypatch.context() as disk:
        disk.setattr(imposed, "write_text", full)
        audit(front, "bold")
        audit(front, "usual")
        front.check(None)
        assert front.hold.summary()["kept"] is False
        assert caplog.text.count("No space left on device") == 1
        assert start(draft).operation.ceiling is None
    front.check(None)
    assert front.hold.summary()["kept"] is True
    assert f"{FILE} is up to date again" in caplog.text
    assert start(draft).operation.rejected == ["bold", "usual"]


def test_no_file_is_written_that_would_keep_a_server_from_starting(draft, monkeypatch, caplog):
    front = start(draft)
    audit(front, "bold")
    before = (draft / FILE).read_bytes()
    monkeypatch.setattr(imposed, "MAX_BYTES", len(before))
    audit(front, "usual")
    assert (draft / FILE).read_bytes() == before
    assert "is not up to date, and a restart goes by it: it would hold" in caplog.text
    assert front.hold.summary()["kept"] is False


def test_what_could_not_be_written_goes_before_what_comes_later(draft, monkeypatch):
    front = start(draft)
    with monkeypatch.context() as disk:
        disk.setattr(imposed, "write_text", full)
        audit(front, "usual")
    front.switch(mode="exit")
    front.check(None)
    assert start(draft).operation.ceiling is None
    audit(front, "usual")
    with monkeypatch.context() as disk:
        disk.setattr(imposed.Path, "unlink", full)
        front.switch(mode="exit")
    audit(front, "bold")
    assert start(draft).operation.rejected == ["bold"]


def test_a_lock_that_another_process_keeps_holds_up_no_request_again(draft, monkeypatch):
    """What is not written is tried again with requests, which must not wait for it each time."""
    monkeypatch.setattr(imposed, "SECONDS", 0.0)
    front, waited = start(draft), []
    monkeypatch.setattr(locking, "SECONDS", 0.2)
    monkeypatch.setattr(locking.time, "sleep", waited.append)
    with locking.locked(draft):
        audit(front, "usual")
        assert waited
        waited.clear()
        for _ in range(10):
            front.check(None)
        assert waited == []
    front.check(None)
    assert start(draft).operation.ceiling == "careful"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        (json.dumps({"words": [], "for_all": {}}), "field entries is .*: Field required"),
        (
            json.dumps({"entries": [{"words": [], "settings": [], "for_all": ["usual"]}]}),
            "field entries.0.for_all is .'usual'.",
        ),
    ],
)
def test_a_file_that_cannot_be_read_keeps_a_server_from_starting(text, message, draft):
    """As nothing says what exits it was to end."""
    (draft / FILE).write_text(text)
    with pytest.raises(PolicyError, match=f"{FILE}: {message}"):
        start(draft)
