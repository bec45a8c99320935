"""The method, once: what the signals mean, where a trace could end, when it is ended, and at what risk.

`signals`, `splits`, `labels` and `decision` define it as small numpy references that every fast version is tested
against; `replay` and `simulate` apply the decision to recorded traces; `statistics` and `calibrate` say what may be
claimed of it. Imports nothing of the other rooms but the files of `specexit.data` and `specexit.drafts`, and the keys
of its commands (`specexit.schemas`).
"""
