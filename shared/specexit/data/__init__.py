"""From prompts to training examples: what a target was asked, what it wrote, and what is learnt from it.

`prompts` reads questions, `answers` compares answers, `rows` says what a trace is and `traces` is the file of them,
`annotate` finds exit points, `sequences` and `packing` make training examples and `packed` reads them, `features`
holds a target's hidden states on these, `scores` a draft's signals on traces.
"""
