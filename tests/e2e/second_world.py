"""A second target, made from nothing in about a minute of one core, and its prompts: ``python second_world.py FOLDER``.

It shares nothing with the tiny reasoner that the project could presume: a Llama with untied embeddings, a byte-level
vocabulary in which ``".\\n\\n"`` is two tokens, special tokens ``[THINK]`` and ``[/THINK]`` around the thinking, a chat
template that does not open it, a tokenizer that puts ``<s>`` before any text, questions of multiple choice, answers of
about 60 tokens.

Its thinking is installed, as the tiny reasoner's is: it knows what a word is, slips where that is the last option, says
it again as often as it is asked to, and the first repetition mends the slip.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

KINDS = {
    "a tree": ["oak", "elm", "ash", "fir", "bay", "yew"],
    "a metal": ["tin", "zinc", "iron", "lead", "gold", "brass"],
    "a food": ["corn", "rye", "oat", "pea", "fig", "plum"],
    "a drink": ["ale", "gin", "tea", "milk", "rum", "wine"],
}
LETTERS = "ABCD"
NAMES = ["Ann", "Ben", "Cal", "Dot", "Eve", "Fay", "Gus", "Hal", "Ida", "Joe", "Kay", "Lou"]
CHECKS = range(1, 7)
BOS, EOS, PAD, ASK, ASKED, THINK, THOUGHT = "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[THINK]", "[/THINK]"
FORCED = "\n\nThe answer is ("
"""As in the target's YAML: behind this, the model states its answer at once."""
SPECIAL = (PAD, BOS, EOS, ASK, ASKED, THINK, THOUGHT)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
"""A full stop and the blank line behind it are never in one piece."""
SIZES = {"train": 240, "calibrate": 200, "test": 40}


@dataclass(frozen=True)
class Question:
    """What a word is, and how often that is to be checked."""

    name: str
    word: str
    letter: str
    checks: int

    @property
    def text(self) -> str:
        """What a user would ask."""
        options = ", ".join(f"{letter} {kind}" for letter, kind in zip(LETTERS, KINDS, strict=True))
        return f"{self.name} asks what {self.word} is: {options}. Check it {self.checks} times."

    @property
    def steps(self) -> list[str]:
        """Its thinking: the first look, and the checks."""
        word, letter = self.word, self.letter
        first = [f"{self.name} asks what {word} is.", f"I think that {word} is {'C' if letter == 'D' else letter}."]
        return first + [f"Check {i}: {word} is {letter}, so it is {letter}." for i in range(1, self.checks + 1)]

    def thinking(self, kept: int | None = None) -> str:
        """Its first steps between the markers."""
        return f"{THINK}\n" + "".join(f"{step}\n\n" for step in self.steps[:kept]) + THOUGHT

    def stated(self, kept: int) -> str:
        """The letter that the first steps have come to; A where they have come to none."""
        return "A" if kept == 1 else "C" if kept == 2 and self.letter == "D" else self.letter

    def answer(self, letter: str) -> str:
        """About 60 tokens."""
        return (
            f"\n\nI was asked what {self.word} is, and there are four options. I have compared {self.word} with all of "
            "them, and I have checked it as often as I was asked to. After all of these checks I am sure that "
            f"{self.word} is what the option with the letter {letter} says. The answer is ({letter}).{EOS}"
        )


def questions(seed: int) -> Iterator[Question]:
    """Endless questions."""
    rng = random.Random(seed)
    while True:
        letter, words = rng.choice(list(zip(LETTERS, KINDS.values(), strict=True)))
        yield Question(rng.choice(NAMES), rng.choice(words), letter, rng.choice(CHECKS))


def lessons(seed: int) -> Iterator[tuple[str, str]]:
    """Endless pairs of a text and what is taught to be written behind it: the whole response; or, where the thinking is
    ended early, the answer, or the letter alone where that is what the model is made to state."""
    rng = random.Random(f"lessons-{seed}")
    for question in questions(seed):
        kept = rng.randint(1, len(question.steps))
        prompt, letter = prompt_text(question), question.stated(kept)
        yield (
            (prompt, question.thinking() + question.answer(question.letter)),
            (prompt, question.thinking() + question.answer(question.letter)),
            (prompt + question.thinking(kept), question.answer(letter)),
            (prompt + question.thinking(kept) + FORCED, f"{letter}).{EOS}"),
        )[rng.randrange(4)]


def prompt_text(question: Question) -> str:
    """The chat template applied."""
    return f"{BOS}{ASK} {question.text} {ASKED}"


def make_tokenizer(folder: Path) -> Tokenizer:
    """Train a byte-level BPE and write it in Hugging Face layout."""
    corpus = []
    for question, _ in zip(questions(seed=0), range(600), strict=False):
        corpus += [
            f" {question.text} ",
            "\n\n".join(question.steps),
            question.answer(question.letter).removesuffix(EOS),
        ]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_alone])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tokenizer


def make_model(tokenizer: Tokenizer, *, steps: int, batch: int, seed: int = 1) -> LlamaForCausalLM:
    """Train the Llama on responses."""
    torch.manual_seed(seed)
    ids = {name: tokenizer.token_to_id(text) for name, text in (("bos", BOS), ("eos", EOS), ("pad", PAD))}
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
    )
    model = LlamaForCausalLM(config)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    optimizers = [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), torch.optim.AdamW(rest, lr=5e-3)]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: min(1.0, (step + 1) / 10, 2 * (1 - step / steps)))
        for each in optimizers
    ]
    fresh = lessons(seed)
    for step in range(steps):
        rows = [next(fresh) for _ in range(batch)]
        loss = _loss(model, tokenizer, rows)
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 20 == 19:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    return model


def _loss(model: LlamaForCausalLM, tokenizer: Tokenizer, lessons: list[tuple[str, str]]) -> torch.Tensor:
    """Cross-entropy of what is taught."""
    pairs = [[tokenizer.encode(text, add_special_tokens=False).ids for text in lesson] for lesson in lessons]
    length = max(len(given) + len(taught) for given, taught in pairs)
    tokens, targets = (torch.full((len(pairs), length), fill) for fill in (0, -100))
    for i, (given, taught) in enumerate(pairs):
        tokens[i, : len(given) + len(taught)] = torch.tensor(given + taught)
        targets[i, len(given) : len(given) + len(taught)] = torch.tensor(taught)
    logits = model(input_ids=tokens).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def write_prompts(folder: Path) -> None:
    """One file of prompts for each part of the work; no question is in two of them."""
    fresh, seen = questions(seed=2), set[str]()
    for name, size in SIZES.items():
        rows = []
        while len(rows) < size:
            question = next(fresh)
            if question.text not in seen:
                seen.add(question.text)
                row = {"id": f"{name}-{len(rows)}", "prompt": question.text, "reference": question.letter}
                rows.append(row | {"choices": list(KINDS)})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(folder: Path) -> None:
    """Model, tokenizer and prompts."""
    torch.set_num_threads(1)
    model_folder = folder / "models" / "my-target"
    model_folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(model_folder)
    make_model(tokenizer, steps=130, batch=24).save_pretrained(model_folder)
    (folder / "prompts").mkdir(exist_ok=True)
    write_prompts(folder / "prompts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
