"""The tiny reasoner's tokenizer: a small byte-level BPE that splits text the way Qwen3's does.

So "`.\\n\\n`" is one token, digits are single tokens, ``Wait`` / ``But`` / ``So`` are single tokens, and the think
markers are ordinary added tokens: what is learned about boundaries here holds for the full-size models.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from specexit.tiny.tasks import stream
from specexit.tiny.traces import render_response, write_trace

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2/Qwen3's pre-tokenizer expression (published in their tokenizer.json)."""

CORPUS_SIZE = 3000
"""Problems, each with a trace, that the BPE is trained on."""

END_OF_TEXT, TURN_OPEN, TURN_CLOSE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def prompt_text(question: str) -> str:
    """The chat template applied to one user turn, thinking opened, as Qwen3-4B-Thinking-2507 does."""
    return f"{TURN_OPEN}user\n{question}{TURN_CLOSE}\n{TURN_OPEN}assistant\n<think>\n"


def build_tokenizer(folder: Path, *, seed: int = 0) -> None:
    """Train the BPE on generated text and write it in Hugging Face layout into ``folder``."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    rng = random.Random(seed)
    corpus = []
    for _, problem in zip(range(CORPUS_SIZE), stream("pretrain", seed), strict=False):
        text = prompt_text(problem.question) + render_response(problem, write_trace(rng, problem))
        for marker in (TURN_OPEN, TURN_CLOSE, "<think>", "</think>"):
            text = text.replace(marker, "")
        corpus.append(text)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1019, initial_alphabet=alphabet, min_frequency=5, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    special = (END_OF_TEXT, TURN_OPEN, TURN_CLOSE)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_CLOSE,
        "pad_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
