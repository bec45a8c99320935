"""What is said of a draft to people: its model card, and `specexit inspect`."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from specexit.data.overlap import write_prompts
from specexit.drafts.config import DraftError
from specexit.drafts.export import FORMATS
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.hold import HoldFile, Imposed, claim_of, words_of
from specexit.drafts.inspect import describe, inspect
from specexit.drafts.migrate import migrate
from specexit.drafts.policy import (
    Certificate,
    Fingerprints,
    OperatingPoint,
    PolicyFile,
    Serving,
    policy_sha256,
    read_policy,
    write_policy,
)
from specexit.drafts.published import import_draft
from specexit.drafts.tensors import weights_hash
from specexit.method.decision import Policy
from specexit.schemas.inspect import InspectConfig
from specexit.schemas.migrate import MigrateConfig
from specexit.schemas.published import ImportConfig
from specexit.schemas.target import load_target_config
from tests.shared.published import SHAPE, exported, write_published, write_target

ACCEPTED = {"rows": 900, "length": 2.31, "by_position": [0.8, 0.4, 0.11]}
ENGINE = {"vllm": "0.32.0", "runner": "V1", "dtype": "float32", "n": 4}
ENGINE |= {"greedy_drafts": {"compared": 195, "same": 194}}
ENGINE |= {"acceptance": {"vllm": ACCEPTED, "torch": ACCEPTED | {"length": 2.34}}}


@pytest.fixture
def target(tmp_path):
    return write_target(tmp_path / "of")


def verification_of(folder: Path) -> dict[str, object]:
    """What ``verify.json`` says of a draft, but for the text that it accepted."""
    differences = {"logits": 1e-6, "validity": 2e-6}
    return {
        "weights_blake3": weights_hash(folder),
        "passed": True,
        "n": 4,
        "differences": differences,
        "mistakes": [],
    }


def careful(**said: float) -> OperatingPoint:
    """A point with a certificate of its policy."""
    policy = Policy(thresholds={"validity": 0.97})
    found = Certificate(
        **{"risk": "accuracy_lost", "epsilon": 0.02, "delta": 0.1, "n": 500, "errors": 4, "bound": 0.0159}
        | {"data_sha256": "ab" * 32, "policy_sha256": policy_sha256(policy)}
        | said,
    )
    return OperatingPoint(name="careful", policy=policy, certificate=found)


def test_the_card_says_what_is_known_and_what_is_not(tmp_path, target, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    _, _, out = exported(folder, tmp_path, "plugin", target)
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["pipeline_tag"] == "text-generation"
    assert "early-exit" in front["tags"]
    assert "Without a certificate" in text
    assert "Not verified." in text
    assert "fewer of the drafted tokens, and what is read off for an early exit means nothing." in text
    assert "What it was trained on is not recorded." in text
    write_prompts(folder, np.arange(1234, dtype=np.uint64))
    made = {"population": {"prompts": 500, "traces": 500, "answer_kinds": ["math"]}, "sampling": {"temperature": 0.6}}
    made |= {"fingerprints": {"draft": weights_hash(folder), "dtype": "bfloat16"}}
    write_policy(folder, PolicyFile.model_validate({"default": "careful", "points": (careful(),)} | made))
    (folder / "verify.json").write_text(json.dumps(verification_of(folder) | {"acceptance": ACCEPTED}))
    assert describe(folder)["verified"].startswith("yes, on 4 traces; acceptance length 2.31 on 900 rows")
    _, _, out = exported(folder, tmp_path / "b", "plugin", target)
    text = (out / "README.md").read_text()
    assert (
        "JAX against PyTorch in float32 on 4 traces, largest differences: logits: 1.0e-06; validity: 2.0e-06." in text
    )
    assert "vLLM" not in text.partition("## Verification")[2].partition("##")[0]
    assert "| step 1 | step 2 | step 3 |\n|---|---|---|\n| 80.0% | 40.0% | 11.0% |" in text
    assert "`careful` (default): exits at validity 0.97. With 90% confidence at most 2% of such prompts lose" in text
    assert "(4 of 500 did; counted on trial answers; exits were judged by greedy answers, and one that" in text
    file = folder / "policy.json"
    file.write_text(file.read_text().replace("0.97", "0.5"))  # by hand: the certificate is of another policy
    assert "exits at validity 0.5; not certified: policy of point careful is" in str(describe(folder))
    _, _, out = exported(folder, tmp_path / "c", "plugin", target)
    assert "Its certificate does not hold here (policy of point careful is" in (out / "README.md").read_text()
    assert "They were made on 500 prompts with answers of kind math; temperature 0.6; dtype bfloat16." in text
    assert "It does not cover:" in text
    assert "Trained on what small wrote for 1,234 prompts" in text
    assert "published in the layout" not in text
    assert (out / "policy.json").read_text() == (folder / "policy.json").read_text()


def test_the_card_says_how_a_draft_was_verified(tmp_path, target, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    verified = verification_of(folder)
    (folder / "verify.json").write_text(json.dumps(verified | {"dtype": "bfloat16", "differences": {"logits": 0.004}}))
    _, _, out = exported(folder, tmp_path / "rounded", "plugin", target)
    said = "JAX against PyTorch in bfloat16 on 4 traces, root mean square of the differences: logits: 4.0e-03."
    assert said in (out / "README.md").read_text()
    (folder / "verify.json").write_text(json.dumps(verified | {"vllm": ENGINE}))
    _, _, out = exported(folder, tmp_path / "c", "eagle3", target)
    text = (out / "README.md").read_text()
    assert "carries no early exit" in text
    assert "differences: logits: 1.0e-06.\n" in text  # it has no signals that could differ
    assert "vLLM 0.32.0 (V1 runner) in float32 went on greedily" in text
    assert "194 of 195 drafts were those of PyTorch on the same text, with 2.31 tokens per step, 2.34 by" in text
    assert "fewer of the drafted tokens. What is not stated above was not measured." in text
    assert not (out / "policy.json").exists()


@pytest.mark.parametrize("source", ["draft", "fc"])
def test_what_a_plain_draft_s_card_says_of_its_verification_stays_true_in_its_folder(
    source, tmp_path, target, write_random_draft
):
    """`verify.json` stayed behind, so the folder whose card told of it was not verified."""
    folder = write_random_draft(tmp_path / "draft", source, **SHAPE)
    (folder / "verify.json").write_text(json.dumps(verification_of(folder)))
    _, _, out = exported(folder, tmp_path, "eagle3", target)
    assert describe(out)["verified"] == "yes, on 4 traces"
    assert json.loads((out / "verify.json").read_text())["differences"] == {"logits": 1e-6}
    (folder / "verify.json").write_text(json.dumps(verification_of(folder) | {"weights_blake3": "of others"}))
    _, _, out = exported(folder, tmp_path / "stale", "eagle3", target)
    assert describe(out)["verified"].startswith("stale")


@pytest.mark.parametrize("unusable", ["{", "[]", '{"differences": 3}'])
def test_a_verification_that_cannot_be_used_keeps_no_draft_from_being_exported(
    unusable, tmp_path, target, write_random_draft
):
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    (folder / "verify.json").write_text(unusable)
    _, _, out = exported(folder, tmp_path, "eagle3", target)
    assert "Not verified." in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (
            Policy(thresholds={"validity": 0.75}, early={"validity": 0.5}, patience=3, max_thinking_tokens=4000),
            "validity 0.75 (8 tokens before, validity 0.5), 3 boundaries in a row, and at any boundary from 4,000 "
            "tokens on",
        ),
        (
            Policy(thresholds={"confidence": 0.8, "remaining": 200}, smoothing="ewma", alpha=0.25),
            "confidence 0.8 and remaining 200, signals averaged by token with weight 0.25 of the newest",
        ),
        (Policy(thresholds={}, min_thinking_tokens=500), "any boundary, from 500 tokens on"),
    ],
)
def test_a_policy_is_told_whole(policy, said, tmp_path, target, write_random_draft):
    """Its thresholds alone would be another's; one without any, which exits at any boundary, `exits at nothing`."""
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    write_policy(folder, PolicyFile(points=(OperatingPoint(name="default", policy=policy),)))
    assert describe(folder)["policy default"] == f"exits at {said}; no certificate"
    _, _, out = exported(folder, tmp_path, "plugin", target)
    assert f"* `default` (default): exits at {said}. Without a certificate" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("lacking", "key"),
    [
        ({"greedy_drafts": {"compared": 195}}, "vllm.greedy_drafts.same"),
        ({"acceptance": {"vllm": ACCEPTED}}, "vllm.acceptance.torch"),
    ],
)
def test_a_verification_that_lacks_a_key_is_no_verification(lacking, key, tmp_path, target, write_random_draft):
    """A stranger's file ended `export` in a traceback."""
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    (folder / "verify.json").write_text(json.dumps(verification_of(folder) | {"vllm": ENGINE | lacking}))
    _, _, out = exported(folder, tmp_path, "plugin", target)
    assert "Not verified." in (out / "README.md").read_text()
    assert f"verify.json: {key} is " in describe(folder)["verified"]


@pytest.mark.parametrize("form", ["plugin", "eagle3", "speculators", "angelslim"])
def test_the_hub_reads_the_card_and_finds_what_is_known(form, tmp_path, target, write_random_draft):
    """By its own library; a licence that nobody has said is not made up, nor what a certificate does not say."""
    folder = write_random_draft(tmp_path / "draft", "fc", **SHAPE)
    exported(folder, tmp_path, form, target, base_model="org/model")
    card = ModelCard.load(tmp_path / form / "README.md")
    assert card.data.base_model == "org/model"
    assert card.data.pipeline_tag == "text-generation"
    assert ("early-exit" in card.data.tags) == (form != "eagle3")
    assert card.data.license is None
    assert "of their thinking" not in card.text
    exits = form in ("plugin", "speculators")
    assert ("in a checkout of SpecExit's sources" in card.text) == exits
    assert "pip install 'specexit" not in card.text
    marks = Fingerprints(draft=weights_hash(folder))
    known = {"fingerprints": marks, "sampling": {"temperature": 0.6}}
    write_policy(folder, PolicyFile(default="careful", points=(careful(thinking_cut=0.314),), **known))
    exported(folder, tmp_path / "b", form, target, license="apache-2.0")
    card = ModelCard.load(tmp_path / "b" / form / "README.md")
    assert card.data.license == "apache-2.0"
    assert ("It saved 31.4% of their thinking." in card.text) == exits


def test_a_draft_that_was_trained_further_from_a_published_one_says_so(tmp_path, target, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    write_prompts(folder, np.arange(12, dtype=np.uint64))
    (folder / "convert.json").write_text('{"imported": "specforge"}')
    _, _, out = exported(folder, tmp_path / "further", "plugin", target)
    assert "It began as a draft that was published in the layout of `specforge`" in (out / "README.md").read_text()
    for wrong in (3, "mine", [1], {}):  # the last two were a traceback
        (folder / "convert.json").write_text(json.dumps({"imported": wrong}))
        said = rf"convert\.json: imported is {re.escape(repr(wrong))}, expected one of speculators, "
        with pytest.raises(DraftError, match=said):
            describe(folder)


def test_inspect_says_what_is_there(tmp_path, target, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "fc", **SHAPE)
    rows = describe(folder)
    assert rows["reads"] == "the residual stream after layers 2, 6, 9 of 12"
    assert rows["signals"].startswith("source fc: confidence")
    assert rows["policy default"] == "exits at validity 0.9; no certificate"
    assert rows["verified"] == "no: run `specexit verify`"
    assert rows["exports to"] == "plugin, eagle3, speculators, angelslim"
    assert rows["origin"] == "not recorded"
    write_prompts(folder, np.arange(1400, dtype=np.uint64))
    assert describe(folder)["origin"] == "trained here, on 1,400 prompts"
    source = write_published(tmp_path / "published", "deepspec")
    import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "imported"))
    rows = describe(tmp_path / "imported")
    assert rows["variants"] == "own_embeddings, qwen3"
    assert rows["origin"] == "imported, layout deepspec; its config names another target, Qwen/Qwen3-4B"
    assert rows["exports to"] == "eagle3, speculators, original"
    assert set(rows["exports to"].split(", ")) <= FORMATS.keys()
    _, _, plain = exported(folder, tmp_path, "eagle3", target)  # whose config.json has no place for the target's name
    assert describe(plain)["target"] == "tiny-reasoner, hidden size 64, 200 tokens"
    (plain / "target.yaml").unlink()
    assert describe(plain)["target"] == "not named, hidden size 64, 200 tokens"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"fingerprints": {"draft": "0" * 64}}, "draft is .*, calibrated with 0000"),
        ({"fingerprints": {}}, "does not say with which draft"),
        ({"serving": {"transition": "So."}}, "serving.transition is 'So.', calibrated without"),
        ({"sampling": {}}, "does not say at which temperature"),
        ({}, None),
    ],
)
def test_nothing_is_told_as_certified_that_a_server_would_not_call_so(
    other, why, tmp_path, target, write_random_draft, capsys
):
    """As of weights that were retrained, or rounded by `convert dtype=`, under the policy of others."""
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    beside = target_fingerprint(load_target_config("tiny-reasoner").folder)  # which it names
    made = {"fingerprints": {"draft": weights_hash(folder), "target": beside}, "sampling": {"temperature": 0.6}}
    write_policy(folder, PolicyFile.model_validate({"default": "careful", "points": (careful(),)} | made | other))
    row = describe(folder)["policy careful, default"]
    assert ("at most 2%" in row) == (why is None)
    migrate(MigrateConfig(draft=folder))
    migrated = " ".join(capsys.readouterr().err.split())
    _, _, out = exported(folder, tmp_path, "plugin", target)
    card = (out / "README.md").read_text()
    assert ("With 90% confidence" in card) == (why is None)
    for text in () if why is None else (row, migrated, card):
        assert re.search(why, text)


@pytest.mark.parametrize("transition", ["", "So."])
def test_migrate_says_of_each_point_whether_it_is_certified(transition, tmp_path, write_random_draft, capsys):
    """It named all points, and said of them what is so of the default one."""
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    bold = OperatingPoint(name="bold", policy=Policy(thresholds={"validity": 0.5}))
    made = {"fingerprints": Fingerprints(draft=weights_hash(folder)), "sampling": {"temperature": 0.6}}
    serving = Serving(transition=transition)
    write_policy(folder, PolicyFile(default="careful", points=(bold, careful()), serving=serving, **made))
    migrate(MigrateConfig(draft=folder))
    said = " ".join(capsys.readouterr().err.split())
    careful_is = "not certified; serving.transition is 'So.', calibrated without" if transition else "certified"
    assert said.endswith(f"was there already; point bold has no certificate; point careful is {careful_is}")


def test_a_certificate_is_told_with_all_that_it_leaves_out(tmp_path, target, write_random_draft):
    """A card goes to people who never see the traces: 99.9 was rounded to certainty, and nothing said of trials."""
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    groups = {"a": {"n": 300, "errors": 3, "bound": 0.0159}, "b": {"n": 200, "errors": 1, "bound": 0.015}}
    point = careful(delta=0.001, n_unjudged=200, groups=groups)
    beside = target_fingerprint(load_target_config("tiny-reasoner").folder)
    made = {"fingerprints": {"draft": weights_hash(folder), "target": beside}, "sampling": {"temperature": 0}}
    write_policy(folder, PolicyFile.model_validate({"default": "careful", "points": (point,)} | made))
    row = describe(folder)["policy careful, default"]
    _, _, out = exported(folder, tmp_path, "plugin", target)
    said = "; of the worst of 2 groups; counted on trial answers; 200 traces could not judge and were left out"
    assert row.endswith(f"at most 2% with 99.9% confidence (500 prompts){said}")
    assert (
        f"With 99.9% confidence at most 2% of such prompts lose a right answer (4 of 500 did{said})."
        in (out / "README.md").read_text()
    )


def test_what_keeps_servers_from_exiting_is_told_and_goes_along(tmp_path, target, write_random_draft):
    """Exits that audits had ended were made again by the first server of an export."""
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    write_policy(folder, PolicyFile(default="careful", points=(careful(),), serving=Serving(mode="shadow")))
    policy = read_policy(folder)
    claims = {claim_of(policy.points[0]): "careful"}
    imposed = Imposed(words=words_of(policy), settings=("mode=shadow", "hold=True"), for_all=claims)
    (folder / "hold.json").write_text(HoldFile(entries=(imposed,)).model_dump_json())
    held = "audits have shown a risk above epsilon at careful (hold.json)"
    assert describe(folder)["serving"] == f"mode shadow: no exits are made; {held}"
    for form in ("plugin", "speculators"):
        _, _, out = exported(folder, tmp_path, form, target)
        assert (out / "hold.json").read_bytes() == (folder / "hold.json").read_bytes()
        card = (out / "README.md").read_text()
        assert "Audits have since shown, on a server, that its risk there is above" in card
        assert "`policy.json` says mode `shadow`, in which a server makes no exits." in card
        assert (  # nothing was known of a risk that audits had shown
            "(policy.json does not say with which draft it was calibrated: calibrate again; policy.json does not say "
            "at which temperature its traces were sampled: calibrate again): nothing is promised of its risk. Audits"
        ) in card
        assert "nothing is known of its risk" not in card
    write_policy(folder, policy.model_copy(update={"serving": Serving()}))  # a word about it, which lifts it
    assert "serving" not in describe(folder)


def test_a_folder_with_brackets_is_named_as_it_is(tmp_path, write_random_draft, capsys):
    folder = write_random_draft(tmp_path / "runs[v2]", "fc", **SHAPE)
    inspect(InspectConfig(draft=folder))
    assert "runs[v2]" in capsys.readouterr().out.replace("\n", "")
    migrate(MigrateConfig(draft=folder))
    assert "runs[v2]/policy.json" in capsys.readouterr().err.replace("\n", "")


def test_a_long_path_is_not_broken_in_a_log(tmp_path, target, capsys):
    """It went on in the next line behind 80 letters, so that nothing found it and nobody could copy it."""
    deep = tmp_path / ("of-a-month-" * 8)
    source = write_published(deep / "published", "deepspec")
    import_draft(ImportConfig(draft=source, target=target, out=deep / "draft"))
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith(f"{source}: ") for line in said)
    assert f"-> {deep / 'draft'}" in said
    exported(deep / "draft", deep, "eagle3", target)
    warning, done = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"{deep / 'draft'}: ")
    assert warning.endswith("computes another one and says nothing")
    assert done == f"{deep / 'draft'} -> {deep / 'eagle3'} (eagle3)"


def test_what_migrate_says_is_one_line(tmp_path, write_random_draft, capsys):
    folder = write_random_draft(tmp_path / ("of-a-month-" * 8), "draft", **SHAPE)
    migrate(MigrateConfig(draft=folder))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{folder / 'policy.json'}: ")
