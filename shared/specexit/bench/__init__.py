"""What is compared and how: methods in turns, paired intervals, and the files that results are kept in.

`methods` is what is compared, one file each; `process` runs one side of a comparison, `journal` keeps what it said,
`inputs` tells one benchmark's from another's, `comparison` does the statistics, `results` is `results.json`; `ablate`,
`certificate`, `data`, `recipe`, `replay` and `training` are benchmarks of their own.
"""
