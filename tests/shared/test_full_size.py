"""What it costs to convert a draft of the size that an 8B target has: time against ``cp``, and memory."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from specexit.drafts.tensors import WEIGHTS, open_tensors, write_tensors
from tests.shared.published import CONFIGS, write_target

HIDDEN, INTERMEDIATE, VOCAB, DRAFT_VOCAB = 4096, 14336, 128256, 32000

SIZES = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_attention_heads": 32}
SIZES |= {"num_key_value_heads": 8, "vocab_size": VOCAB, "draft_vocab_size": DRAFT_VOCAB}
SHAPES = {
    "fc.weight": (HIDDEN, 3 * HIDDEN),
    "midlayer.self_attn.q_proj.weight": (4096, 2 * HIDDEN),
    "midlayer.self_attn.k_proj.weight": (1024, 2 * HIDDEN),
    "midlayer.self_attn.v_proj.weight": (1024, 2 * HIDDEN),
    "midlayer.self_attn.o_proj.weight": (HIDDEN, 4096),
    "midlayer.mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
    "midlayer.mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
    "midlayer.mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
    "lm_head.weight": (DRAFT_VOCAB, HIDDEN),
    **{f"midlayer.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm")},
    "norm.weight": (HIDDEN,),
}

SCRIPT = """
import json, resource, sys, time
from pathlib import Path
import specexit.drafts.published
from specexit.drafts.published import import_draft
from specexit.schemas.published import ImportConfig
def held(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) * 1024
before, begin = held("VmRSS"), time.perf_counter()
import_draft(ImportConfig(draft=sys.argv[1], target=sys.argv[2], out=sys.argv[3]))
print(json.dumps({"seconds": time.perf_counter() - begin, "bytes": held("VmHWM") - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif("SPECEXIT_FULL_SIZE" not in os.environ, reason="writes 3 GB; set SPECEXIT_FULL_SIZE=1")
def test_importing_a_full_size_draft_costs_little_more_than_copying_it(tmp_path):
    source = tmp_path / "published"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIGS["safeailab"] | SIZES))
    target = write_target(tmp_path / "of", hidden_size=HIDDEN, vocab_size=VOCAB, num_hidden_layers=32)
    chosen = np.arange(DRAFT_VOCAB) * 4
    vocabulary = {"d2t": chosen - np.arange(DRAFT_VOCAB), "t2d": np.isin(np.arange(VOCAB), chosen)}
    noise = np.random.default_rng(0).normal(size=2**20).astype(np.float32)
    shapes = {name: (noise.dtype, shape) for name, shape in SHAPES.items()}
    shapes |= {name: (value.dtype, value.shape) for name, value in vocabulary.items()}

    def pieces(name):
        if name in vocabulary:
            yield vocabulary[name]
            return
        left = int(np.prod(SHAPES[name]))
        while left > 0:
            yield noise[:left]
            left -= len(noise)

    write_tensors(source, shapes, pieces)
    size = (source / WEIGHTS).stat().st_size
    largest = max(place.nbytes for place in open_tensors(source).values())
    begin = time.perf_counter()
    subprocess.run(["cp", "-r", source, tmp_path / "copy"], check=True)
    copying = time.perf_counter() - begin
    shutil.rmtree(tmp_path / "copy")
    command = [sys.executable, "-c", SCRIPT, source, target, tmp_path / "draft"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(f"{size / 1e9:.2f} GB: cp {copying:.2f} s, import {found['seconds']:.2f} s, {found['bytes'] / largest:.2f} x")
    assert found["bytes"] <= 1.5 * largest
    # Time is printed and not asserted: on a machine that does other things as well it says nothing.
