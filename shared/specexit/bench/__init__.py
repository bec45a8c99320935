"""What is compared and how: methods in turns, paired intervals, and the files that results are kept in.

`methods` is what is compared, one file each; `process` runs one side of a comparison, `journal` keeps what it said,
`inputs` tells one benchmark's from another's, `requests` is what each method wrote, `comparison` does the statistics,
`results` is `results.json`, `energy` reads the counters of joules.

Benchmarks of their own are `ablate` (with `trained`, for what no replay can tell), `certificate`, `data`, `recipe`
(with `shuffled`, for signals that nobody can learn), `replay` and `training`; `refinement` compares the boundaries that
``collect`` tries with all of them.
"""
