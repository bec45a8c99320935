"""Write docs/gallery.md: what the commands print, run on a copy of a finished demo (``make demo``).

``python configs/site/gallery.py runs/demo``. Numbers are of that run; a test sees to it that the commands and their
keys exist, and that no command of the table is left out without a reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

STEPS = (
    (
        "collect",
        "collect target=tiny-reasoner split=test n=4 out=RUN/gallery/traces",
        "Traces of the target, and trial answers at their boundaries; on a terminal a progress bar.",
    ),
    (
        "annotate",
        "annotate traces=RUN/traces/test out=RUN/gallery/labelled",
        "Exit points, and what they save.",
    ),
    ("pack", "pack traces=RUN/labelled/draft out=RUN/gallery/packed length=768", "Training examples of one length."),
    (
        "train",
        "train tiny-reasoner data=RUN/packed eval_traces=RUN/labelled/calibration out=RUN/gallery/train steps=20",
        "Twenty steps, as fast as a machine was that did other things as well; on a terminal the bar moves.",
    ),
    ("status", "status run=RUN/train", "How far a run is; the exit code says it to scripts."),
    (
        "evaluate",
        "evaluate run=RUN/train traces=RUN/labelled/test out=RUN/gallery/evaluation.json n=16",
        "A trained draft on held-out traces.",
    ),
    ("convert", "convert run=RUN/train out=RUN/gallery/draft", "A checkpoint as a draft directory."),
    (
        "verify",
        "verify draft=RUN/gallery/draft traces=RUN/labelled/test n=4 vllm=false",
        "JAX against PyTorch, and what the traces accept. With vLLM, a third table.",
    ),
    (
        "score",
        "score draft=RUN/gallery/draft traces=RUN/labelled/test out=RUN/gallery/scores",
        "Signals of every token; on a terminal a progress bar.",
    ),
    (
        "calibrate",
        "calibrate draft=RUN/gallery/draft traces=RUN/labelled/calibration scores=RUN/scores/calibration "
        "risk=accuracy_lost epsilon=0.05",
        "A threshold with its guarantee.",
    ),
    (
        "simulate",
        "simulate traces=RUN/labelled/test scores=RUN/scores/test out=RUN/gallery/simulation.json",
        "Every policy on the same traces, nothing generated.",
    ),
    (
        "ablate",
        "ablate traces=RUN/labelled/test scores.draft=RUN/scores/test out=RUN/gallery/ablations",
        "What each choice of the method is worth on these traces.",
    ),
    (
        "bench-replay",
        "bench-replay bench=RUN/bench traces=RUN/labelled/test draft=RUN/draft scores=RUN/scores/test "
        "out=RUN/gallery/replay.json",
        "Served exits against replayed ones.",
    ),
    ("inspect", "inspect draft=RUN/gallery/draft", "What is in a directory, and what it is known to do."),
    (
        "export",
        "export draft=RUN/gallery/draft format=eagle3 out=RUN/gallery/plain",
        "The same draft for an engine without the plug-in.",
    ),
    (
        "import",
        "import draft=RUN/gallery/plain target=tiny-reasoner layout=specforge out=RUN/gallery/imported",
        "Somebody's EAGLE-3 draft; here the one just exported.",
    ),
    ("migrate", "migrate draft=RUN/gallery/draft", "A directory of an older version; here one that is up to date."),
)
"""Command, its arguments, and what it is for; ``RUN`` is the demo's folder."""

HEAD = """# Gallery

What the commands print, from real runs on a finished demo (`make demo`, 300 test prompts of the tiny reasoner): the
numbers show the form and prove nothing of other models. `configs/site/gallery.py` writes this page.
`specexit COMMAND --help` lists the keys of a command.
"""

TAIL = """## Not shown here

"""


NOT_SHOWN = {
    "demo": "it runs most of the commands above, one after the other",
    "features": "an engine reads for minutes; [stored features](training-variants.md#stored-features)",
    "plan": "it needs libtpu, of 0.7 GB; [planning](planning.md)",
    "bench": "engines serve for minutes; its table is that of the README",
    "bench-serving": "engines serve for minutes; [what it measures](serving-measured.md)",
    "bench-data": "times, which say something on an idle machine alone; [data](data.md)",
    "bench-labels": "an engine's times; [collecting](collecting.md)",
    "bench-training": "times, which say something on an idle machine alone; [training](training-measured.md)",
    "bench-recipe": "it trains a draft for every variant and seed",
    "bench-certificate": "thousands of samples; [the guarantee in numbers](method.md#the-guarantee)",
    "bench-full-size": "engines of a real target's size; [evidence](evidence.md)",
    "stand-in": "it writes a model of a real target's size, and says only where",
    "serve": "it serves until it is stopped; its `check` prints a table of an engine's hooks, wider than a page",
    "chat": "it asks a server, and waits for a person",
    "report": "it prints nothing: what it writes is a page",
}
"""Command of the table that the page has no run of -> why."""


def shown(command: str, run: Path) -> str:
    """What a command prints, both streams, with the run named as the demo names it.

    Raises:
      subprocess.CalledProcessError: it failed.
    """
    words = [word.replace("RUN", str(run), 1) for word in command.split()]
    settings = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "specexit", *words],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    lines = [line.rstrip() for line in done.stdout.replace(str(run), "runs/demo").splitlines()]
    return "\n".join(lines).strip("\n")


def main(demo: Path) -> None:
    """Run every step on a copy of the demo, and write the page."""
    parts = [HEAD]
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        subprocess.run(["cp", "-r", demo, run], check=True)
        for name, command, about in STEPS:
            text = shown(command, run)
            line = command.replace("RUN", "runs/demo")
            parts.append(f"## {name}\n\n{about}\n\n```text\n$ specexit {line}\n{text}\n```\n")
    parts.append(TAIL + "".join(f"* `{name}`: {why}.\n" for name, why in NOT_SHOWN.items()))
    (ROOT / "docs" / "gallery.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
