"""A full-size stand-in: a small model inside the matrices of a large one, and its draft likewise.

It writes, token for token up to rounding, what the small model writes, and has the large one's files, matrix products,
KV cache and vocabulary. `shape` says where every part goes, `target` and `draft` fill the tensors, `files` writes them
one shard at a time, `write` is the command.

What a time measured on it is: what this hardware, engine and plug-in need for a target and a draft of this size, for
texts of the small model's lengths, exits and acceptance. What it is not: anything about how long a real model of this
size thinks, how well a real draft guesses it, or how often its exits are right.
"""

from specexit.stand_in.shape import Shape as Shape
from specexit.stand_in.shape import StandInError as StandInError
from specexit.stand_in.write import stand_in as stand_in
