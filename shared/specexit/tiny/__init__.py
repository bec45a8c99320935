"""tiny-reasoner: the embedded reasoning model that makes the whole pipeline run for real on a laptop CPU.

`tasks` are its problems, `traces` its way of thinking (installed, see there), `tokenizer` its text; the weights beside
this file are reproduced by ``make tiny-reasoner``.
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
"""The target in Hugging Face layout: config.json, model.safetensors, tokenizer.json."""
