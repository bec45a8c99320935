"""``python -m specexit`` is ``specexit``."""

from specexit.cli import main

main()
