"""The embedded targets: reasoning models so small that the whole pipeline runs for real on a laptop CPU.

tiny-reasoner is the first. `tasks` are its problems, `traces` its way of thinking (installed, see there), `tokenizer`
its text. tiny-mixed has the same size and tokenizer, and harder ground truth: `families` are its problems. The weights
in ``model`` and ``mixed`` are reproduced by ``make tiny-reasoner`` and ``make tiny-mixed``.
"""

from pathlib import Path

from specexit.tiny.tasks import Problem as Problem
from specexit.tiny.tasks import problems as problems
from specexit.tiny.tasks import split_of as split_of
from specexit.tiny.tasks import stream as stream
from specexit.tiny.tokenizer import prompt_text as prompt_text
from specexit.tiny.traces import render_response as render_response
from specexit.tiny.traces import write_trace as write_trace

MODEL_DIR = Path(__file__).parent / "model"
"""The tiny reasoner in Hugging Face layout: config.json, model.safetensors, tokenizer.json."""

MIXED_DIR = Path(__file__).parent / "mixed"
"""tiny-mixed, likewise."""

MIXED = "embedded:mixed"
EMBEDDED = {"embedded": MODEL_DIR, MIXED: MIXED_DIR}
"""What a target's YAML calls them in ``path``."""
