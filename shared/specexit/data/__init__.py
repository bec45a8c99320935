"""From prompts to training examples: what a target was asked, what it wrote, and what is learnt from it.

`prompts` reads questions, `answers` compares answers, `traces` is the file in the middle, `annotate` finds exit points,
`sequences` and `packing` make training examples, `scores` holds a draft's signals on traces.
"""
