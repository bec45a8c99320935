"""From prompts to training examples: what a target was asked, what it wrote, and what is learnt from it.

`prompts` reads questions, `answers` compares answers, `boundaries` says where to try one next.

Traces: `rows` says what a trace is, `traces` is the file of them, and `parts` one that is too large for a file.
`stream` reads it block by block, of `columns` as arrays, and has `checks` look whether a row can be; `engine` says what
wrote it. `seen`, `outlines` and `scratch` lie on the disk, so that memory does not grow with the number of traces.

From them: `annotate` finds exit points and `summary` counts what they say; `sequences` and `packing` make training
examples and `packed` reads them; `features` holds a target's hidden states on these, and `teacher` is what training
makes of those; `scores` are a draft's signals on traces. `overlap` keeps apart what is trained on and what is judged.
"""
