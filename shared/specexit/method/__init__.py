"""The method, once: what the signals mean, where a trace could end, when it is ended, and at what risk.

`signals`, `splits`, `labels`, `decision` and `loops` define it as small numpy references that every fast version is
tested against. `replay` applies the decision to recorded traces, and `stored` to more of them than fit into memory;
`simulate` plays the `policies` of others as well, and `tally` and `sums` add up what they do, in the order that
`ordered` keeps on the disk.

`calibrate`, once `calibration_inputs` has checked what it is given, says what may be claimed: of a `sample` of prompts,
whose errors `judged` counts, `certify` picks the boldest policy whose risk is bounded, by `statistics`. Imports nothing
of the other rooms but the files of `specexit.data` and `specexit.drafts`, and the keys of its commands
(`specexit.schemas`).
"""
