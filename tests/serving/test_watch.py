"""What a server reads of its policy file while it runs, and what of its own settings goes over it."""

from __future__ import annotations

import copy
import itertools
import json
import os
import threading
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from specexit.config import ConfigError
from specexit.drafts import locking
from specexit.drafts import policy as policies
from specexit.drafts.policy import FILE, PolicyError, PolicyFile, write_policy
from tests.serving.ends import GREEDY, incoming
from tests.serving.points import BLOCK, POINTS, point
from tests.serving.test_opening import engine_with, starting
from torch_specexit.plugin.frontend import opening
from torch_specexit.plugin.frontend import watch as watching
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.callers import mark_of
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.server import FrontEnd
from torch_specexit.plugin.frontend.watch import PolicyWatch, policies_for


def written(folder, **changes):
    write_policy(
        folder, PolicyFile.model_validate({"points": POINTS, "default": "usual", "sampling": GREEDY} | changes)
    )


@pytest.fixture
def draft(write_random_draft, tmp_path):
    folder = write_random_draft(tmp_path / "draft", "draft")
    written(folder)
    return folder


def test_a_changed_file_is_in_force_for_the_next_request_and_a_bad_one_is_not(draft, monkeypatch, caplog):
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    file, serving = policies_for(draft, BLOCK, {})
    server, watch = Operation(BLOCK, file, serving), PolicyWatch(draft, BLOCK, {}, {"dtype": "bfloat16"})
    assert not watch.changed(server)
    written(draft, default="careful", serving={"mode": "shadow"}, fingerprints={"dtype": "float16"})
    assert watch.changed(server)
    assert (server.resolve(None).point, server.mode) == ("careful", "shadow")
    assert server.doubts == ("dtype is bfloat16, calibrated with float16",)
    for text, message in (
        ("{", "cannot be read as JSON"),
        (json.dumps({"points": [point("ewma", 0.9, smoothing="ewma")], "default": "ewma"}), "smoothing 'ewma'"),
        (json.dumps({"points": [point("all", 0.9, thresholds={})], "default": "all"}), "point all has no thresholds"),
        (json.dumps({"points": POINTS, "default": "usual", "serving": {"loras": {"a": "b"}}}), "serving.loras.a"),
        (
            json.dumps({"points": POINTS, "default": "usual", "sampling": {"temperature": "0.6"}}),
            "temperature is '0.6'",
        ),
    ):
        (draft / FILE).write_text(text)
        assert not watch.changed(server)
        assert message in caplog.text
        assert server.resolve(None).point == "careful"


def test_a_file_that_was_seen_half_written_is_read_again_once_it_is_whole(draft, monkeypatch):
    """Both writes fell into one tick of the disk's clock, and a kill switch was lost until the next edit."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    server, watch = Operation(BLOCK, *policies_for(draft, BLOCK, {})), PolicyWatch(draft, BLOCK, {}, {})
    whole = json.dumps(json.loads((draft / FILE).read_text()) | {"serving": {"mode": "off"}})
    for text, mode in ((whole[:100], "exit"), (whole, "off")):
        (draft / FILE).write_text(text)
        os.utime(draft / FILE, ns=(9, 9))
        watch.changed(server)
        assert server.mode == mode


def test_a_file_that_is_overwritten_with_as_many_bytes_and_its_old_time_is_read(draft, monkeypatch):
    """As `rsync --inplace --times` may do: a kill switch was never heard."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    server, watch = Operation(BLOCK, *policies_for(draft, BLOCK, {})), PolicyWatch(draft, BLOCK, {}, {})
    before = (draft / FILE).stat()
    text = (draft / FILE).read_text().replace('"mode": "exit"', '"mode":  "off"')
    time.sleep(0.05)  # a tick of the disk's clock
    (draft / FILE).write_text(text)
    os.utime(draft / FILE, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (draft / FILE).stat().st_size == before.st_size
    assert watch.changed(server)
    assert server.mode == "off"


def test_a_file_that_could_not_be_opened_for_a_while_is_read_as_soon_as_it_can_be(draft, monkeypatch, caplog):
    """As where all file handles were in use: a kill switch was lost until the next edit."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    server, watch = Operation(BLOCK, *policies_for(draft, BLOCK, {})), PolicyWatch(draft, BLOCK, {}, {})
    written(draft, serving={"mode": "off"})
    with monkeypatch.context() as busy:

        def refused(*args):
            raise PolicyError("policy.json: cannot be read: Too many open files")

        busy.setattr(watching, "read_policy", refused)
        for _ in range(3):
            assert not watch.changed(server)
    assert caplog.text.count("Too many open files") == 1
    assert watch.changed(server)
    assert server.mode == "off"


def test_who_asks_a_server_that_nobody_uses_is_told_what_the_file_says_now(draft, monkeypatch):
    """Its operator wrote `off`, looked, and was told `exit` until somebody sent a request."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    server = Operation(BLOCK, *policies_for(draft, BLOCK, {}))
    front = FrontEnd(server, Activity(), watch=PolicyWatch(draft, BLOCK, {}, {}))
    assert front.summary()["mode"] == "exit"
    written(draft, serving={"mode": "off"})
    assert front.summary()["mode"] == "off"


def test_the_log_says_the_point_that_serves_and_not_the_one_that_audits_hold_back(draft, monkeypatch, caplog):
    """Who edited a tenant was told that the point was back which audits had found to change too many answers."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    server, watch = Operation(BLOCK, *policies_for(draft, BLOCK, {})), PolicyWatch(draft, BLOCK, {}, {})
    front = FrontEnd(server, Activity(), watch=watch)
    server.reject(server.file.point("usual"))
    written(draft, serving={"share": 0.5})
    front.switch(mode="shadow")
    assert "read again: mode exit, point careful" in caplog.text
    assert "an operator has set mode shadow, point careful" in caplog.text


def test_a_server_that_is_not_ready_for_its_file_is_ready_again_once_that_is_mended(draft, monkeypatch):
    """Nobody sends requests to such a one, and without any it did not look: it stayed away until a restart."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    required = {"specexit": {"required": True}}
    server, watch = Operation(BLOCK, *policies_for(draft, BLOCK, required)), PolicyWatch(draft, BLOCK, required, {})
    front = FrontEnd(server, Activity(), watch=watch)
    assert front.problem() is None
    written(draft, default="untested")
    assert front.problem() == "point untested has no certificate"
    written(draft)
    assert front.problem() is None


@pytest.fixture
def watched(draft, monkeypatch):
    """An operation, and the watch of its file, which looks at once."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    file, serving = policies_for(draft, BLOCK, {})
    return Operation(BLOCK, file, serving), PolicyWatch(draft, BLOCK, {}, {})


@pytest.mark.parametrize("way", ["removed", "a link to nothing"])
def test_a_file_that_is_gone_changes_nothing(way, draft, watched, caplog):
    """A moment without it, as between `rm` and `cp`, used to put an invented policy without a certificate in force."""
    server, watch = watched
    (draft / FILE).unlink()
    if way != "removed":
        (draft / FILE).symlink_to(draft / "nothing")
    assert not watch.changed(server)
    assert "policy.json: is not there, expected the file to read again" in caplog.text
    with pytest.raises(PolicyError, match="is not there"):
        watch.reload(server)
    assert (server.resolve(None).point, len(server.file.points)) == ("usual", 4)
    (draft / FILE).unlink(missing_ok=True)
    written(draft, default="careful")
    assert watch.changed(server)
    assert server.resolve(None).point == "careful"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("thinking_margin", 0, "is 0, expected None"),
        ("transition", "Done.", "is 'Done.', expected ''"),
        ("loop_period", 5, "is 5, expected None"),
        ("loop_repeats", 3, "is 3, expected 4"),
        ("audit_rate", 1.0, "is 1, expected 0"),
    ],
)
def test_a_file_that_changes_what_only_a_start_can_change_is_refused(key, value, expected, draft, watched, caplog):
    """It used to be taken without a word: a margin without effect, requests held back for audits that nobody made."""
    server, watch = watched
    written(draft, default="careful", serving={key: value})
    assert not watch.changed(server)
    assert f"policy.json: serving.{key} {expected}, with which the " in caplog.text
    assert (server.resolve(None).point, server.resolve(None).mode) == ("usual", "exit")


def test_a_server_that_makes_audits_may_stop_and_begin_again(draft, monkeypatch):
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    written(draft, serving={"audit_rate": 0.5})
    file, serving = policies_for(draft, BLOCK, {})
    server, watch = Operation(BLOCK, file, serving), PolicyWatch(draft, BLOCK, {}, {})
    for rate in (0.0, 1.0):
        written(draft, serving={"audit_rate": rate})
        assert watch.changed(server)
        assert server.resolve(None).audited == (rate == 1.0)


def test_a_file_with_nothing_new_lifts_nothing(draft, watched):
    """A touch, by `rsync` or by another image of the volume, used to undo a kill switch."""
    server, watch = watched
    server.switch("off")
    for copied in range(2):
        if copied:
            text = (draft / FILE).read_text()
            (draft / FILE).unlink()
            (draft / FILE).write_text(text)
        os.utime(draft / FILE, ns=(copied, copied))
        assert not watch.changed(server)
        assert server.resolve(None).mode == "off"
    server.switch("exit")
    server.reject(server.file.point("usual"))
    os.utime(draft / FILE, ns=(9, 9))
    assert not watch.changed(server)
    assert server.resolve(None).point == "careful"


def test_what_an_operator_has_set_stays_until_the_file_says_something_else_about_it(draft, watched):
    server, watch = watched
    server.switch("off", "careful")
    written(draft, serving={"share": 0.5})
    assert watch.changed(server)
    assert (server.serving.share, server.mode, server.name) == (0.5, "off", "careful")
    written(draft, serving={"mode": "shadow"})
    assert watch.changed(server)
    assert (server.mode, server.name) == ("shadow", "careful")
    written(draft, default="bold", serving={"mode": "shadow"})
    assert watch.changed(server)
    assert server.name == "bold"
    server.switch(point="untested")
    written(draft, points=POINTS[:3], default="bold")
    assert watch.changed(server)
    assert (server.mode, server.name) == ("exit", "bold")


def test_a_word_of_an_operator_that_is_refused_changes_nothing(draft, watched):
    """A misspelt point used to be refused when the file had been read again, and exits were on again."""
    server, watch = watched
    front = FrontEnd(server, Activity(), watch=watch)
    front.switch(mode="off")
    written(draft, default="bold", serving={"share": 0.5})
    with pytest.raises(PolicyError, match="operating point 'boldest' does not exist"):
        front.switch(reload=True, point="boldest")
    assert (server.mode, server.name, server.serving.share) == ("off", "usual", 1.0)
    front.switch(reload=True, point="careful")
    assert (server.mode, server.name, server.serving.share) == ("off", "careful", 0.5)


@pytest.mark.parametrize("word", [{}, {"reload": True}], ids=str)
def test_a_word_that_says_nothing_new_lifts_nothing_that_audits_have_imposed(word, draft, watched, caplog):
    server, watch = watched
    front = FrontEnd(server, Activity(), watch=watch)

    def imposed():
        return server.ceiling, server.mode, server.stepped, front.hold.summary()["points"]

    for name in ("bold", "usual", "careful"):
        server.reject(server.file.point(name))
    front.audited("careful", "changed", server.file.point("careful").policy)
    before = copy.deepcopy(imposed())
    assert before[:3] == ("careful", "shadow", {"bold": "usual"})
    assert before[3]["careful"]["audits"] == 1
    front.switch(**word)
    written(draft, serving={"share": 0.5})
    front.switch(**word)
    assert imposed() == before
    assert "an operator has set" not in caplog.text
    written(draft, serving={"share": 0.5, "mode": "shadow"})
    front.switch(reload=True)
    assert imposed() == (None, "shadow", {}, {})


@pytest.mark.parametrize(
    ("rejected", "left", "default", "served"),
    [
        ("bold", ("bold",), "bold", ("bold", "exit")),  # another default, which lifts it
        ("usual", ("bold", "usual"), "usual", ("usual", "shadow")),  # what stood in for it is gone
        ("usual", ("bold", "careful"), "careful", ("careful", "exit")),  # the point itself is
        ("bold", ("usual", "careful"), "usual", ("usual", "exit")),
    ],
)
def test_a_file_may_leave_out_points_that_audits_have_moved_a_server_from_or_to(
    rejected, left, default, served, draft, watched, caplog
):
    """Every request was an error from then on, and the log said that the policy stays as it was."""
    server, watch = watched
    server.reject(server.file.point(rejected))
    written(draft, points=[point for point in POINTS if point["name"] in left], default=default)
    assert watch.changed(server)
    assert "the policy stays as it was" not in caplog.text
    assert (server.resolve(None).point, server.resolve(None).mode) == served
    assert FrontEnd(server, Activity()).summary()["point"] == served[0]


def api_servers(draft, n=2):
    """Front ends of as many API server processes, with one draft."""
    fronts = []
    for _ in range(n):
        file, serving = policies_for(draft, BLOCK, {})
        watch = PolicyWatch(draft, BLOCK, {}, {})
        fronts.append(FrontEnd(Operation(BLOCK, file, serving), Activity(), watch=watch, api_servers=n))
    return fronts


def served_by(front):
    """What the next request gets of an API server."""
    admitted = front.admit(incoming("chatcmpl-1"))
    return admitted.mode, front.operation.name


def test_a_word_that_falls_into_the_start_of_a_server_is_heard(draft, monkeypatch):
    """What was written while the engine started was taken for what had been read before, and never read: not even a
    kill switch."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    config, opened = starting(draft, monkeypatch)
    written(draft, serving={"mode": "off"})
    assert served_by(opening.open_front_end(engine_with(config), opened)) == ("off", "usual")


@pytest.mark.parametrize(
    ("serving", "named"),
    [({"share": 0.5}, None), ({"transition": "So."}, "transition"), ({"thinking_margin": 20}, "thinking_margin")],
)
def test_a_setting_of_the_workers_that_changes_while_they_start_is_doubted(serving, named, draft, monkeypatch):
    """They had the new one, and exits were called certified by the old one."""
    config, opened = starting(draft, monkeypatch)
    written(draft, serving=serving)
    operation = opening.open_front_end(engine_with(config), opened).operation
    found = [doubt for doubt in operation.uncertified_because() if "while the engine started" in doubt]
    doubt = f"serving.{named} of policy.json changed while the engine started: restart the server"
    assert found == ([] if named is None else [doubt])


def test_a_word_to_one_api_server_reaches_all_that_share_its_engines(draft, monkeypatch):
    """A kill switch used to end the exits of the one process that had happened to get the request."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    first, second = api_servers(draft)
    reached = first.switch(mode="off")
    assert (reached["api_servers"], reached["of"]) == (2, 2)
    assert [served_by(front) for front in (first, second)] == [("off", "usual")] * 2
    second.operation.reject(
        second.operation.file.point("usual")
    )  # which an operator's word lifts, wherever it is given
    first.switch(mode="exit", point="bold")
    assert [served_by(front) for front in (first, second)] == [("exit", "bold")] * 2
    assert second.operation.ceiling is None
    assert [event.what for event in second.operation.file.history] == [
        "switch mode=off point=-",
        "switch mode=exit point=bold",
    ]
    (alone,) = api_servers(draft, 1)
    before = (draft / FILE).read_bytes()
    assert alone.switch(mode="off") == {"api_servers": 1, "of": 1}
    assert (draft / FILE).read_bytes() == before


def test_a_word_that_is_said_again_and_again_takes_no_more_room_and_is_heard(draft, monkeypatch):
    """Whoever said it every minute filled the file, until a kill switch reached one process alone."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    times = (datetime(2026, 1, 1, 8, minute, tzinfo=UTC) for minute in itertools.count())
    monkeypatch.setattr(watching, "datetime", SimpleNamespace(now=lambda zone: next(times)))
    first, second = api_servers(draft)
    for _ in range(3):
        first.switch(mode="exit")
        second.operation.reject(second.operation.file.point("usual"))
        assert second.operation.ceiling == "careful"
        first.switch(point="usual")
        first.switch(mode="exit")  # lifts what audits have imposed since, as each time
        assert served_by(second) == ("exit", "usual")
        assert second.operation.ceiling is None
    history = [event.what for event in policies_for(draft, BLOCK, {})[0].history]
    assert history == ["switch mode=- point=usual", "switch mode=exit point=-"]
    second.operation.switch(mode="off")  # which has reached it alone
    first.switch(mode="exit")
    assert served_by(second) == ("exit", "usual")


def test_of_two_words_to_two_api_servers_at_a_time_none_is_lost(draft, monkeypatch):
    """Each wrote the file as it had read it: a kill switch could be lost to a change of the point."""
    first, second = api_servers(draft)
    other = threading.Thread(target=second.watch.order, args=(second.operation, "off", None))

    def read_as_the_other_begins(*args):
        found = policies_for(*args)
        monkeypatch.setattr(watching, "policies_for", policies_for)
        other.start()
        other.join(0.2)  # alone, the other one would have written by then
        return found

    monkeypatch.setattr(watching, "policies_for", read_as_the_other_begins)
    assert first.watch.order(first.operation, None, "bold") is None
    other.join()
    file, serving = policies_for(draft, BLOCK, {})
    assert (file.default, serving.mode, len(file.history)) == ("bold", "off", 2)


def test_a_kill_switch_waits_a_moment_for_a_folder_that_is_locked_and_says_so(draft, monkeypatch):
    monkeypatch.setattr(locking, "SECONDS", 0.0)
    first, _ = api_servers(draft)
    with locking.locked(draft):
        reached = first.switch(mode="off")
    assert "cannot be written: " in reached["others"]
    assert "another process has locked it" in reached["others"]
    assert first.operation.resolve(None).mode == "off"


def test_a_kill_switch_works_where_the_history_has_no_room_for_it_and_says_so(draft, monkeypatch):
    """One word more would be more than is read: no server could start with the draft again."""
    first, _ = api_servers(draft)
    write_policy(draft, policies.read_policy(draft))
    before = (draft / FILE).read_bytes()
    monkeypatch.setattr(policies, "MAX_BYTES", len(before))
    assert "expected at most" in first.switch(mode="off")["others"]
    assert first.operation.resolve(None).mode == "off"
    assert (draft / FILE).read_bytes() == before


def test_what_reaches_one_api_server_alone_says_so(draft, monkeypatch):
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    first, second = api_servers(draft)

    def read_only(*_args):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as m:
        m.setattr(watching, "write_policy", read_only)
        reached = first.switch(mode="off")
    assert reached == {
        "api_servers": 1,
        "of": 2,
        "others": f"{draft / FILE} cannot be written: [Errno 30] Read-only file system",
    }
    assert (served_by(first), served_by(second)) == (("off", "usual"), ("exit", "usual"))
    (draft / FILE).rename(draft / "aside")
    assert first.switch(mode="shadow")["others"] == f"{draft / FILE} is not there (specexit migrate writes it)"
    (draft / FILE).write_text("{")  # whatever has become of the file, the kill switch does what it can
    reached = first.switch(mode="off")
    assert (reached["api_servers"], served_by(first)) == (1, ("off", "usual"))
    assert "cannot be read as JSON" in reached["others"]
    (draft / "aside").rename(draft / FILE)
    assert first.switch(reload=True)["api_servers"] == 1


def test_a_mode_that_other_api_servers_would_not_take_over_is_refused_by_all(draft, monkeypatch):
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    monkeypatch.setenv("SPECEXIT_SERVING", '{"mode": "shadow"}')
    first, second = api_servers(draft)
    before = (draft / FILE).read_bytes()
    with pytest.raises(PolicyError, match=r"mode exit has no effect: .* or SPECEXIT_SERVING says shadow"):
        first.switch(mode="exit")
    with pytest.raises(PolicyError, match="operating point 'boldest' does not exist"):
        first.switch(mode="off", point="boldest")
    assert (draft / FILE).read_bytes() == before
    assert [served_by(front) for front in (first, second)] == [("shadow", "usual")] * 2


def test_settings_come_from_the_file_then_the_command_line_then_the_environment(draft, monkeypatch):
    written(draft, serving={"mode": "shadow", "audit_rate": 0.5, "share": 0.5})
    monkeypatch.setenv("SPECEXIT_SERVING", '{"share": 0.1}')
    _, serving = policies_for(draft, BLOCK, {"specexit": {"audit_rate": 0.02, "share": 0.2}})
    assert (serving.mode, serving.audit_rate, serving.share) == ("shadow", 0.02, 0.1)
    for text, message in (
        ("{", "SPECEXIT_SERVING: cannot be read as JSON"),
        (
            '{"efforts": {"low": "lowest"}}',
            "SPECEXIT_SERVING, over .*: serving.efforts.low is 'lowest', expected a point",
        ),
        ('{"share": 2}', "SPECEXIT_SERVING: specexit.share is 2"),
        # A kill switch was lost where the key came again.
        ('{"mode": "off", "mode": "exit"}', "SPECEXIT_SERVING: 'mode' is there twice"),
        ("[" * 100_000, "SPECEXIT_SERVING: cannot be read as JSON"),
        ('{"loras": {"": "off"}}', "SPECEXIT_SERVING, over .*: serving.loras has an adapter without a name"),
    ):
        monkeypatch.setenv("SPECEXIT_SERVING", text)
        with pytest.raises(ConfigError, match=message):
            policies_for(draft, BLOCK, {})


@pytest.mark.parametrize("where", ["file", "command line", "environment"])
@pytest.mark.parametrize("mode", ["off", "shadow"])
def test_what_is_switched_off_in_one_place_stays_off_whatever_another_says(where, mode, draft, monkeypatch, caplog):
    """A `mode` of the start used to go over that of the file: its kill switch was without effect, without a word."""
    modes = dict.fromkeys(("file", "command line", "environment"), "exit") | {where: mode}
    written(draft, serving={"mode": modes["file"]})
    monkeypatch.setenv("SPECEXIT_SERVING", json.dumps({"mode": modes["environment"]}))
    _, serving = policies_for(draft, BLOCK, {"specexit": {"mode": modes["command line"]}})
    assert serving.mode == mode
    overruled = f"has no effect: --additional-config or policy.json says {mode}, and the stricter one is in force"
    assert (overruled in caplog.text) == (where != "environment")


def test_the_kill_switch_of_the_file_works_in_a_server_that_was_started_with_a_mode(draft, monkeypatch):
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    for started in ("exit", "shadow", "off"):
        monkeypatch.setenv("SPECEXIT_SERVING", json.dumps({"mode": started}))
        written(draft)
        server, watch = Operation(BLOCK, *policies_for(draft, BLOCK, {})), PolicyWatch(draft, BLOCK, {}, {})
        server.switch("exit")
        written(draft, serving={"mode": "off"})
        assert watch.changed(server)
        assert server.resolve(None).mode == "off"


def test_a_tenant_or_an_adapter_that_is_off_in_the_file_is_off_whatever_the_start_says(draft, monkeypatch):
    key, other = mark_of("cut off"), mark_of("served")
    written(draft, serving={"tenants": {key: "off", other: "careful"}, "loras": {"raw": "off"}})
    settings = {"tenants": {key: "bold", other: "bold"}, "loras": {"raw": "bold"}}
    monkeypatch.setenv("SPECEXIT_SERVING", json.dumps(settings))
    _, serving = policies_for(draft, BLOCK, {})
    assert (serving.tenants, serving.loras) == ({key: "off", other: "bold"}, {"raw": "off"})


def test_what_the_file_says_in_vain_is_logged(draft, monkeypatch, caplog):
    """A change that the settings of the start go over used to be swallowed."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    monkeypatch.setenv("SPECEXIT_SERVING", json.dumps({"share": 0.5, "requests": "none"}))
    server, watch = Operation(BLOCK, *policies_for(draft, BLOCK, {})), PolicyWatch(draft, BLOCK, {}, {})
    written(draft, serving={"share": 0.1, "requests": "none", "required": True})
    assert watch.changed(server)
    assert (server.serving.share, server.serving.required) == (0.5, True)
    said = [line.getMessage() for line in caplog.records if "has no effect" in line.message]
    assert said == [
        f"specexit: serving.share of {draft / FILE} has no effect: --additional-config or SPECEXIT_SERVING goes over it"
    ]
