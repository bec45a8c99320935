"""Write docs/gallery.md: what the commands print, run on a copy of a finished demo (``make demo QUICK=1``).

``python configs/site/gallery.py runs/demo-quick``. Numbers are of that run; a test sees to it that the commands and
their keys exist.
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
        "annotate",
        "annotate traces=RUN/traces/test out=RUN/gallery/labelled",
        "Exit points, and what they save.",
    ),
    ("pack", "pack traces=RUN/labelled/draft out=RUN/gallery/packed length=768", "Training examples of one length."),
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
)
"""Command, its arguments, and what it is for; ``RUN`` is the demo's folder."""

HEAD = """# Gallery

What the commands print, from real runs on the smallest demo (`make demo QUICK=1`, 32 test prompts, a draft of some
minutes' training): the numbers show the form and prove nothing. `configs/site/gallery.py` writes this page.
`specexit COMMAND --help` lists the keys of a command.
"""


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
    lines = [line.rstrip() for line in done.stdout.replace(str(run), "runs/demo-quick").splitlines()]
    return "\n".join(lines).strip("\n")


def main(demo: Path) -> None:
    """Run every step on a copy of the demo, and write the page."""
    parts = [HEAD]
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        subprocess.run(["cp", "-r", demo, run], check=True)
        for name, command, about in STEPS:
            text = shown(command, run)
            line = command.replace("RUN", "runs/demo-quick")
            parts.append(f"## {name}\n\n{about}\n\n```text\n$ specexit {line}\n{text}\n```\n")
    (ROOT / "docs" / "gallery.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
