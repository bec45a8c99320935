"""From prompts to training examples: what a target was asked, what it wrote, and what a draft learns from it.

`prompts` reads questions, `answers` compares answers, `boundaries` says where to try one next.

Traces: `rows` says what a trace is, `traces` reads and writes files of them, and `parts` splits a file that would be
too large. `stream` reads files block by block, `columns` gives columns as arrays, and `checks` refuses rows that
contradict themselves; `engine` keeps the number types of the model that wrote them. `seen`, `outlines` and `scratch`
lie on the disk, so that memory does not grow with the number of traces. `written_by` compares the weights that wrote
traces with those that a target has.

From traces: `annotate` finds exit points and `summary` counts what they say; `sequences` and `packing` make training
examples and `packed` reads them; `features` stores a target's hidden states on these, and `teacher` checks what
training makes of the states; `scores` stores a draft's signals on traces. `overlap` keeps prompts that were trained on
apart from those that are judged.
"""
