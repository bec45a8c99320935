"""What runs on the API server's side: what a request may ask, what it gets, and what is told of it.

`opening` makes the front end (`server`) when an engine starts, which a signal may end (`starting`). `operation` is how
exits are treated just now, by the policy file that `watch` reads again. A request is held against `arguments`,
`permissions`, `efforts`, `sampling`, `grammars` and `callers` when it is admitted. `reports` keeps what workers say of
it; `streaming`, `metrics` and `tracing` hand that on, `finding` and `finished` answer whoever asks later, over
`routes`. `audit` compares answers, `hold` judges the risk by them, `imposed` keeps what follows from it. `inner` marks
requests of our own, `own_end` those that have ended by themselves. `traffic` and `drafting` watch whether requests and
draft are those of the calibration, `activity` whether exits are active.
"""
