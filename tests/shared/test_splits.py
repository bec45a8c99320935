"""Split tokens and think markers are found through the tokenizer, whatever its ids are."""

import json
import re

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from specexit import tiny
from specexit.method.splits import (
    PROBE,
    SplitError,
    behind,
    load_tokenizer,
    marker,
    misread,
    resolve,
    split_tokens,
    text_behind,
    unmet,
    written,
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(tiny.MODEL_DIR)


@pytest.fixture
def no_markers(tmp_path):
    """A byte-level tokenizer that has never heard of thinking."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(sorted(alphabet))}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(tmp_path)


@pytest.fixture
def spaced(tmp_path):
    """A tokenizer in SentencePiece's manner, which puts a space in front of a whole text, as MiniCPM's and ERNIE's."""
    pieces = ["<unk>", "\u2581", "\n", *"WaitBuAnser", "Wa", "it", "Wait", "\u2581Wait", "But", "\n\n"]
    merges = [("W", "a"), ("i", "t"), ("Wa", "it"), ("\u2581", "Wait"), ("\n", "\n")]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    backend.save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(tmp_path)


def test_every_token_that_ends_a_paragraph_is_a_split_token_and_no_other(tokenizer):
    ids = resolve(tokenizer, "<think>", "</think>", ["\n\n"])
    for token in range(len(tokenizer)):
        assert (token in ids.split) == tokenizer.decode([token]).endswith("\n\n")
    assert tokenizer.encode(".\n\n")[0] in ids.split


def test_markers_are_single_tokens_and_never_split_tokens(tokenizer):
    ids = resolve(tokenizer, "<think>", "</think>", [">", "\n\n"])
    assert tokenizer.decode([ids.start]) == "<think>"
    assert tokenizer.decode([ids.end]) == "</think>"
    assert not {ids.start, ids.end} & ids.split


def test_a_connector_counts_at_a_sentence_start_only(tokenizer):
    ids = resolve(tokenizer, "<think>", "</think>", ["\n\n"], ["So"])
    assert tokenizer.encode("So")[0] in ids.split
    assert not set(tokenizer.encode(" So")) & ids.split


def test_a_part_of_the_split_strings_can_be_chosen(tokenizer):
    paragraph, sentence = tokenizer.encode("\n\n")[0], tokenizer.encode(".\n\n")[0]
    so = tokenizer.encode("So")[0]
    ids = resolve(tokenizer, "<think>", "</think>", ["\n\n", ".\n\n"], ["So"])
    masks = ids.masks()
    assert masks.keys() == ids.split
    assert (masks[paragraph], masks[sentence], masks[so]) == (0b001, 0b011, 0b100)
    for strings in (["So"], [".\n\n"], ["So", ".\n\n"], ["\n\n"]):
        assert ids.only(strings).split == {token for token, mask in masks.items() if mask & ids.mask(strings)}
    assert sentence in ids.only(["\n\n"]).split
    assert paragraph not in ids.only([".\n\n"]).split
    with pytest.raises(SplitError, match=r"split string 'Wait' is unknown, expected one of '\\n\\n', "):
        ids.only(["Wait"])


def test_a_tokenizer_without_think_markers_is_refused_by_name(no_markers):
    with pytest.raises(SplitError, match=r"think marker '<think>' is 7 tokens .* expected exactly one"):
        resolve(no_markers, "<think>", "</think>", ["\n\n"])


def test_a_tokenizer_without_a_step_boundary_is_refused(no_markers):
    with pytest.raises(SplitError, match="no step boundary to exit at"):
        split_tokens(no_markers, ["\n\n"], ["Wait"])


def test_a_marker_may_be_any_added_token(no_markers):
    no_markers.backend.add_tokens([AddedToken("[/reason]", normalized=False)])
    assert no_markers.decode([marker(no_markers, "[/reason]")]) == "[/reason]"


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(SplitError, match=r"tokenizer\.json: file does not exist"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b'{"version": "1.0", "trunc', b"", b"\xff\xfe", b"[]"])
def test_a_tokenizer_that_is_damaged_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(SplitError, match=r"tokenizer\.json: cannot be read as a tokenizer: "):
        load_tokenizer(tmp_path)


def test_an_end_marker_of_several_tokens_is_for_those_who_know_what_to_do_with_it(tokenizer):
    marker = "</think>\n\n"
    ids = resolve(tokenizer, "<think>", marker, ["\n\n"], several=True)
    assert (
        ids.end_marker == tuple(tokenizer.encode(marker)) == (*tokenizer.encode("</think>"), *tokenizer.encode("\n\n"))
    )
    assert ids.only(["\n\n"]).end_marker == ids.end_marker
    with pytest.raises(SplitError, match=r"is 2 tokens .* expected exactly one"):
        resolve(tokenizer, "<think>", marker, ["\n\n"])


@pytest.mark.parametrize(
    ("marker", "message"),
    [("\n\nAnswer.", r"begins with .* at which a step ends"), ("a.a", "expected the first to come once")],
)
def test_an_end_marker_whose_beginning_cannot_be_told_is_refused(tokenizer, marker, message):
    assert len(tokenizer.encode(marker)) > 1
    with pytest.raises(SplitError, match=message):
        resolve(tokenizer, "<think>", marker, ["\n\n"], several=True)


def test_no_prompt_is_cut_or_padded_as_the_texts_of_some_training_were(tmp_path):
    """A file may bring both along; transformers passes them over for each text."""
    fields = json.loads((tiny.MODEL_DIR / "tokenizer.json").read_text())
    fields["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    fields["padding"] = {
        "strategy": {"Fixed": 512},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    ids = load_tokenizer(tmp_path).encode(PROBE)
    assert ids == load_tokenizer(tiny.MODEL_DIR).encode(PROBE)
    assert 4 < len(ids) < 512


def test_a_text_behind_a_marker_begins_as_it_does_there(tokenizer, spaced, no_markers):
    text = "\n\nAnswer"
    for read, marker_ids in ((tokenizer, 1), (spaced, 1), (no_markers, 8)):
        ids = read.encode(f"</think>{text}")
        assert behind(read, "</think>", text) == ids[marker_ids:]
        assert behind(read, "</think>", "") == []
    assert spaced.encode(text) == [1, *behind(spaced, "</think>", text)]  # a space, which no target writes there
    assert behind(tokenizer, "So", "n") == tokenizer.encode("n")  # what would be another word is not cut


@pytest.mark.parametrize("text", ["Wait", "But Wait", " But", "\nWait", "\n\nWait\n\n", "\n\n", ""])
def test_a_text_that_is_written_into_another_is_exact_to_the_byte(text, tokenizer, spaced, no_markers):
    """Of a SentencePiece vocabulary it used to begin with a space."""
    for read in (tokenizer, no_markers):
        assert written(read, text) == read.encode(text)
    for front in ("Wait", "Wait\n", "Wait\n\n"):
        ids = spaced.encode(front)
        assert spaced.decode([*ids, *written(spaced, text)]) == front + text


def test_of_a_sentencepiece_vocabulary_a_connector_is_the_word_without_the_space(spaced):
    ids = resolve(spaced, "<think>", "</think>", ["\n"], ["Wait"]).by_string["Wait"]
    assert ids == {spaced.encode("\nWait")[-1]}
    assert not ids & {*spaced.encode("Wait"), *spaced.encode("n Wait")}  # both begin with the space


def test_split_strings_at_which_no_step_ends_are_found(tokenizer, spaced, tmp_path):
    """GPT-2's way: there is a token of a blank line, but one between two sentences is two tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, "\u010a\u010a"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("\u010a", "\u010a")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_tokens(["<think>", "</think>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    gpt2 = load_tokenizer(tmp_path)
    tokens = resolve(gpt2, "<think>", "</think>", ["\n\n", "\n", "."], ["Wait"])
    assert gpt2.encode("\n\n")[0] in tokens.split
    assert unmet(gpt2, tokens) == ["\n\n", "Wait"]
    assert unmet(tokenizer, resolve(tokenizer, "<think>", "</think>", ["\n\n", ".\n\n", "?"], ["So", "Hold on"])) == [
        "Hold on"
    ]
    assert unmet(spaced, resolve(spaced, "<think>", "</think>", ["\n"], ["Wait", "But"])) == ["But"]


def test_a_tokenizer_that_reads_one_token_otherwise_is_told_by_that_token(tokenizer, tmp_path):
    """The texts are the same: that of GPT-2's class reads blank lines of Phi's file as two tokens."""
    fields = json.loads((tiny.MODEL_DIR / "tokenizer.json").read_text())
    fields["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    said = misread(load_tokenizer(tmp_path), tokenizer)
    assert re.search(
        r"reads 'What is.* as 'What is.*, whose token \d+ is '\\n' \[\d+\], expected '\\n\\n' \[\d+\]$", said
    )


def test_a_tokenizer_that_reads_long_numbers_or_accents_otherwise_is_told(tmp_path):
    def built(name, digits, normalizer=None):
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: i for i, token in enumerate([*letters, "12", "123"])}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("1", "2"), ("12", "3")]))
        pieces = pre_tokenizers.Split(Regex(digits), "isolated")
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence([pieces, bytes_of]), decoders.ByteLevel()
        if normalizer is not None:
            backend.normalizer = normalizer
        (tmp_path / name).mkdir()
        backend.save(str(tmp_path / name / "tokenizer.json"))
        return load_tokenizer(tmp_path / name)

    file = built("file", r"\p{N}{1,3}")
    assert misread(built("same", r"\p{N}{1,3}"), file) is None
    assert misread(built("digits", r"\p{N}"), file) is not None
    assert misread(built("composed", r"\p{N}{1,3}", normalizers.NFC()), file) is not None


def test_a_split_token_behind_ids_that_are_left_out_is_found(tmp_path):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {"\u010a\u010a": 1000}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("\u010a", "\u010a")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path)
    assert len(found) == 1001
    assert split_tokens(found, ["\n\n"]) == {"\n\n": {1000}}


def test_split_tokens_that_the_model_has_no_row_for_are_left_out(tokenizer):
    ids = resolve(tokenizer, "<think>", "</think>", ["\n\n"])
    last = max(ids.split)
    within = ids.within(last)
    assert within.split == ids.split - {last} == within.by_string["\n\n"]
    assert (within.start, within.end) == (ids.start, ids.end)
    assert ids.within(last + 1) == ids


def test_what_is_written_behind_a_text_keeps_its_space(spaced, tokenizer):
    text = spaced.encode("Wait")
    assert spaced.text(text) == "Wait"
    assert text_behind(spaced.text, spaced.encode("But"), text) == " Wait"
    assert text_behind(spaced.text, [], text) == "Wait"
    smile = tokenizer.encode("🙂")
    assert text_behind(tokenizer.text, smile[:1], smile[1:]) == tokenizer.text(smile[1:])  # in the midst of a character
