"""``policy.json``: written and read back, read from older directories, moved there by `migrate`, refused by field."""

import errno
import json
import os

import pytest
import yaml

from specexit.cli import run
from specexit.data.traces import write_traces
from specexit.drafts import policy as policies
from specexit.drafts.directory import read_config, read_draft
from specexit.drafts.policy import (
    MOST_PROMPTS,
    Certificate,
    Event,
    Fingerprints,
    OperatingPoint,
    PolicyError,
    PolicyFile,
    Selection,
    Serving,
    check_policy,
    read_policy,
    write_policy,
)
from specexit.drafts.selection import SelectionError, selection_of
from specexit.method.decision import Policy

OLD_CERTIFICATE = {
    "risk": "answer_changed",
    "epsilon": 0.02,
    "delta": 0.1,
    "n": 500,
    "errors": 4,
    "bound": 0.0159,
    "data_sha256": "ab" * 32,
}
BOLD = OperatingPoint(
    name="risk-0.05",
    policy=Policy(thresholds={"validity": 0.4}, patience=2),
    certificate=Certificate(**OLD_CERTIFICATE),
)
CAUTIOUS = OperatingPoint(name="risk-0.01", policy=Policy(thresholds={"validity": 0.95}))
STORED = PolicyFile(
    default="risk-0.05",
    points=(CAUTIOUS, BOLD),
    fingerprints=Fingerprints(draft="cd" * 32, dtype="float32"),
    sampling={"temperature": 0.6},
    serving=Serving(mode="shadow", audit_rate=0.25),
)
LEVELS = [1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0]
TRAFFIC = {"prompt_tokens": LEVELS, "thinking_tokens": LEVELS, "boundaries": LEVELS}


@pytest.fixture
def draft(tmp_path, write_random_draft):
    return write_random_draft(tmp_path / "draft", "draft")


@pytest.fixture
def old_draft(draft):
    """As a version without ``policy.json`` wrote it."""
    path = draft / "config.json"
    config = json.loads(path.read_text())
    policy = {"thresholds": {"validity": 0.73}, "smoothing": "none", "alpha": 0.1, "patience": 2}
    config["specexit"] |= {"policy": policy, "calibration": OLD_CERTIFICATE, "serving": {"audit_rate": 0.5}}
    config["a_field_of_another_tool"] = [1, 2]
    path.write_text(json.dumps(config))
    return draft


def test_a_policy_file_comes_back_as_it_was_written_and_is_what_the_draft_says(draft):
    weights = (draft / "model.safetensors").read_bytes()
    write_policy(draft, STORED)
    assert read_policy(draft) == STORED
    block = read_config(draft).specexit
    assert (block.policy, block.calibration, block.serving) == (BOLD.policy, BOLD.certificate, STORED.serving)
    assert (draft / "model.safetensors").read_bytes() == weights
    assert {path.name for path in draft.iterdir()} == {"config.json", "model.safetensors", "policy.json"}


def test_what_could_not_be_read_again_is_not_written(draft):
    write_policy(draft, STORED)
    for changes, message in (({"default": "bold"}, "default is 'bold'"), ({"points": (BOLD, BOLD)}, "more than once")):
        with pytest.raises(PolicyError, match=rf"policy\.json: .*{message}"):
            write_policy(draft, STORED.model_copy(update=changes))
    assert read_policy(draft) == STORED


def test_a_policy_that_is_more_than_is_read_is_refused_with_the_field_that_is_too_much(draft, monkeypatch):
    """It was written, and then nothing could read the draft, the next write among it."""
    monkeypatch.setattr(policies, "MAX_BYTES", 20_000)
    write_policy(draft, STORED)
    event = Event(when="2026-01-01T00:00:00+00:00", what="calibrate " + 1000 * "x")
    most = STORED.model_copy(update={"history": 10 * (event,)})
    write_policy(draft, most)
    assert read_policy(draft) == most
    deep = json.loads(70 * "[" + 70 * "]")
    for changes, message in (
        ({"history": 19 * (event,)}, r"would hold 2\d,\d+ bytes, .* in field history, expected at most 20,000 in all"),
        ({"trial": {"math": deep}}, "holds a value in more than 64 lists and objects"),
    ):
        for refused in (write_policy, check_policy):
            with pytest.raises(PolicyError, match=rf"policy\.json: {message}"):
                refused(draft, STORED.model_copy(update=changes))
    assert read_policy(draft) == most


def test_a_draft_can_name_as_many_prompts_as_a_run_is_evaluated_on(draft):
    """A run on more was trained to its end, and `convert` could not write its draft."""
    sizes = []
    for n in (1000, 2000):
        chosen = Selection(by="brier", prompts=tuple(f"{i:016x}" for i in range(n)))
        write_policy(draft, STORED.model_copy(update={"selection": chosen}))
        sizes.append((draft / "policy.json").stat().st_size)
    assert sizes[0] + (sizes[1] - sizes[0]) / 1000 * MOST_PROMPTS < 0.92 * policies.MAX_BYTES


def test_two_policies_leave_the_file_that_vllm_hashes_the_same(draft):
    write_policy(draft, STORED)
    before = (draft / "config.json").read_bytes()
    write_policy(draft, STORED.model_copy(update={"default": "risk-0.01", "serving": Serving()}))
    assert (draft / "config.json").read_bytes() == before
    assert read_config(draft).specexit.policy == CAUTIOUS.policy


def test_an_older_directory_is_read_where_it_is(old_draft):
    point = read_policy(old_draft).point()
    assert point.policy == Policy(thresholds={"validity": 0.73}, patience=2)
    assert point.certificate == Certificate(**OLD_CERTIFICATE)
    assert read_policy(old_draft).serving == Serving(audit_rate=0.5)


def test_migrate_moves_the_policy_and_changes_nothing_else(old_draft, capsys):
    before, policy = json.loads((old_draft / "config.json").read_text()), read_policy(old_draft)
    run("migrate", [str(old_draft)])
    after = json.loads((old_draft / "config.json").read_text())
    assert read_policy(old_draft) == policy
    for name in ("policy", "calibration", "serving"):
        del before["specexit"][name]
    assert after == before
    files = {path.name: path.read_bytes() for path in old_draft.iterdir()}
    run("migrate", [f"draft={old_draft}"])
    assert {path.name: path.read_bytes() for path in old_draft.iterdir()} == files
    printed = capsys.readouterr().err
    assert "written" in printed
    assert "was there already" in printed


def test_a_disk_that_is_full_in_the_midst_of_a_write_leaves_a_policy(old_draft, monkeypatch):
    """The file comes first: taken out of ``config.json`` before, no policy was left."""
    written = []

    def write_text(path, text):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path.name)
        path.write_text(text)

    monkeypatch.setattr(policies, "write_text", write_text)
    with pytest.raises(OSError, match="No space"):
        write_policy(old_draft, STORED)
    assert read_policy(old_draft) == STORED


def test_a_directory_that_has_lost_its_policy_is_refused_with_what_to_do(draft):
    """As by a copy that was cut off: it used to exit at validity 0.9, whatever its policy and its mode had been."""
    write_policy(draft, STORED)
    (draft / "policy.json").unlink()
    for read in (read_policy, read_config):
        with pytest.raises(
            PolicyError, match=r"draft/policy\.json: is not there, .*: copy the file from where the draft is"
        ):
            read(draft)
    lost, _ = read_draft(draft, needs_policy=False)  # as for its weights alone
    assert lost == read_config(draft, needs_policy=False)
    (draft / "policy.json").write_text("{}")  # as the error says
    assert read_config(draft) == lost
    assert read_policy(draft) == PolicyFile()
    assert read_config(draft).specexit.policy == PolicyFile().point().policy


def test_a_plain_draft_has_no_policy_and_gets_none(tmp_path, write_random_draft):
    plain = write_random_draft(tmp_path / "plain", None)
    with pytest.raises(PolicyError, match=r"config\.json: no specexit block and no policy\.json"):
        read_policy(plain)
    with pytest.raises(PolicyError, match=r"config\.json: no specexit block"):
        write_policy(plain, STORED)
    assert not (plain / "policy.json").exists()


def test_points_are_chosen_by_name():
    assert STORED.point() == BOLD
    assert STORED.point("risk-0.01") == CAUTIOUS
    with pytest.raises(PolicyError, match=r"'risk-0\.1' does not exist, expected one of risk-0\.01, risk-0\.05"):
        STORED.point("risk-0.1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"format_version is 2, expected 1"),
        ({"default": "bold"}, r"default is 'bold', expected the name of a point: risk-0\.01, risk-0\.05"),
        ({"points": []}, r"field points is \[\]"),
        ({"pionts": []}, r"field pionts is \[\]: Extra inputs"),
        ({"serving": {"audit_rate": 2}}, r"field serving\.audit_rate is 2"),
        ({"points": [{"name": "a", "policy": {}}] * 2, "default": "a"}, r"points has 'a' more than once"),
        ({"points": [{"name": "a", "policy": {"patience": 0}}]}, r"field points\.0\.policy\.patience is 0"),
        # No tenant could have such a point, and in metrics nobody could tell it from requests' own policies.
        (
            {"points": [{"name": "off", "policy": {}}], "default": "off"},
            r"points has 'off', expected another .* no exits",
        ),
        (
            {"points": [{"name": "own", "policy": {}}], "default": "own"},
            r"points has 'own', expected another .* a policy of",
        ),
        # A running server that took such a number answered every request with a 500.
        (
            {"points": [{"name": "a", "policy": {"min_thinking_tokens": 1 << 70}}]},
            r"field points\.0\.policy\.min_thinking_tokens is \d+: .* less than or equal to 16777216",
        ),
        ({"points": [{"name": "a", "policy": {"patience": (1 << 24) + 1}}]}, r"field points\.0\.policy\.patience is"),
        ({"points": [{"name": "a", "policy": {"max_thinking_tokens": 1 << 25}}]}, r"field .*\.max_thinking_tokens is"),
        (
            {"points": [{"name": "a", "policy": {}, "certificate": OLD_CERTIFICATE | {"bound": 0.5}}]},
            r"field points\.0\.certificate\.bound is 0\.5: expected at least 0 and at most epsilon, which is 0\.02",
        ),
        # Such a file used to be taken by a running server, which then answered every request with a 500.
        (
            {"sampling": {"temperature": "0.6"}},
            r"field sampling is .*: temperature is '0\.6', expected a finite number",
        ),
        ({"sampling": {"temperature": None}}, "field sampling is .*: temperature is None, expected a finite number"),
        ({"sampling": {"temperature": 0.6, "top_p": True}}, "field sampling is .*: top_p is True, expected a finite"),
        ({"sampling": {"temperature": 0.6, "top_k": -2}}, "field sampling is .*: top_k is -2, .* of at least -1"),
        ({"sampling": {"temperature": float("nan")}}, r"(field sampling is .*: temperature is nan|.*NaN)"),
        # And such a one every fiftieth request.
        (
            {"traffic": TRAFFIC | {"prompt_tokens": [1.0]}},
            r"field traffic\.prompt_tokens is \[1\.0\]: expected 7 numbers",
        ),
        ({"traffic": TRAFFIC | {"boundaries": []}}, r"field traffic\.boundaries is \[\]: expected 7 numbers"),
        (
            {"traffic": TRAFFIC | {"thinking_tokens": [9.0, *LEVELS[1:]]}},
            r"field traffic\.thinking_tokens is .* none below",
        ),
        ({"traffic": TRAFFIC | {"prompt_tokens": [float("nan")] * 7}}, r"(field traffic\.prompt_tokens is|.*NaN)"),
        ({"traffic": TRAFFIC | {"split_shares": {"x": 1.0}}}, r"field traffic\.split_shares is .*: expected token ids"),
        (
            {"traffic": TRAFFIC | {"split_shares": {"264": 2}}},
            r"field traffic\.split_shares is .* between 0 and 1 each",
        ),
    ],
)
def test_a_wrong_field_is_named(draft, changes, message):
    write_policy(draft, STORED)
    path = draft / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for read in (read_policy, read_config):
        with pytest.raises(PolicyError, match=rf"policy\.json: {message}"):
            read(draft)


@pytest.mark.parametrize("name", ["sk-raw-key-of-a-client", "2bb80d537b1da3e3" * 4, "2BB80D537B1DA3E3", ""])
def test_a_tenant_that_no_api_key_can_be_is_refused_and_not_repeated(draft, name):
    """Raw keys, whole hashes and upper case used to be taken without a word, and a tenant's `off` had no effect."""
    path = draft / "policy.json"
    write_policy(draft, STORED.model_copy(update={"serving": Serving(tenants={"2bb80d537b1da3e3": "off"})}))
    assert read_policy(draft).serving.tenants == {"2bb80d537b1da3e3": "off"}
    path.write_text(path.read_text().replace("2bb80d537b1da3e3", name))
    with pytest.raises(PolicyError) as error:
        read_policy(draft)
    said = f"serving.tenants has a name of {len(name)} characters, {name[:4]!r}..., expected the first 16 hexadecimal"
    assert f"policy.json: {said}" in str(error.value)
    assert not name or name not in str(error.value)


def test_an_adapter_without_a_name_is_refused(draft):
    """Its `off` was that of every request without an adapter, and the server called itself active."""
    write_policy(draft, STORED.model_copy(update={"serving": Serving(loras={"poet": "off"})}))
    path = draft / "policy.json"
    path.write_text(path.read_text().replace("poet", ""))
    with pytest.raises(PolicyError, match=r"policy\.json: serving.loras has an adapter without a name, expected that"):
        read_policy(draft)


def test_an_api_key_is_not_repeated_where_what_it_gets_is_wrong(draft):
    """As of somebody who took the key for its hash, and writes `false` for `off`."""
    key = "sk-live-0123456789abcdef"
    write_policy(draft, STORED)
    path = draft / "policy.json"
    plain = json.loads(path.read_text())
    for tenants, said in (
        ({key: False}, r"\.sk-l\.\.\. is False: Input should be a valid string"),
        ([key], " is a list: Input should be a valid dictionary"),
        (key, r" is 'sk-l\.\.\.': Input should be a valid dictionary"),
    ):
        path.write_text(json.dumps(plain | {"serving": {"tenants": tenants}}))
        with pytest.raises(PolicyError, match=rf"field serving\.tenants{said}") as error:
            read_policy(draft)
        assert key not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_file_that_is_no_json_object_is_refused(draft, text):
    write_policy(draft, STORED)
    (draft / "policy.json").write_text(text)
    with pytest.raises(PolicyError, match=r"policy\.json: (cannot be read as JSON|holds a list)"):
        read_policy(draft)


def test_a_wrong_field_of_an_older_directory_is_named_as_it_stands_there(old_draft):
    path = old_draft / "config.json"
    config = json.loads(path.read_text())
    config["specexit"]["policy"]["patience"] = 0
    path.write_text(json.dumps(config))
    with pytest.raises(PolicyError, match=r"config\.json: field specexit\.policy\.patience is 0"):
        read_policy(old_draft)


def test_the_prompts_that_chose_a_checkpoint_are_remembered(tmp_path, make_trace):
    traces = [make_trace(id=str(i), prompt_ids=[i // 2]) for i in range(8)]
    write_traces(tmp_path / "eval.parquet", traces)
    config = {"eval_traces": str(tmp_path / "eval.parquet"), "evaluate_n": 6, "best_by": "cut"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"config": config}))
    found = selection_of(tmp_path)
    assert found.by == "cut"
    assert found.prompts == tuple(sorted(make_trace(prompt_ids=[i]).prompt_hash[:16] for i in range(3)))


@pytest.mark.parametrize("config", [{"eval_traces": None}, {"eval_traces": "gone.parquet"}, None])
def test_a_best_checkpoint_without_its_judges_is_refused(tmp_path, config):
    fields = {"evaluate_n": None, "best_by": "auroc"} | (config or {})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"config": fields} if config else {}))
    with pytest.raises(SelectionError, match=r"run\.yaml: its best checkpoint was chosen on eval_traces"):
        selection_of(tmp_path)
