"""How good a draft is: `scoring` runs it over texts, `held_out` inside a training run, `evaluate` as a command.

`judging` turns what was scored into numbers, `rows` says how many rows are scored at once.
"""
