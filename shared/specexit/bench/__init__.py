"""What is compared and how: methods in turns, paired intervals, and the files that results are kept in.

`process` runs one side of a comparison, `comparison` does the statistics, `results` is `results.json`; `signals` and
`training` are benchmarks of their own.
"""
