"""One self-contained HTML page about a run: `page` gathers what it says, `charts` draws, `templates` lays it out.

Its parts, from the top: `verdict`, `pareto` and the other `figures`, `shown` traces, `ablations`, `checks`. Of a
training run `run` says how it went and `watched` where its time was spent. `belongs` refuses what is not of the same
draft. `traces` is the page of ``specexit annotate``; `readme` and `regenerate` put the same results into README and
docs.
"""
