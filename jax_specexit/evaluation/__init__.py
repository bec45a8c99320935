"""How good a draft is: `scoring` runs it over texts, `held_out` inside a training run, `evaluate` as a command.

`judging` makes numbers of what was scored, `rows` says how many rows are taken at once.
"""
