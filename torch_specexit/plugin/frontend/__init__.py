"""The API server's side: what a request may ask for, what it gets, and what is reported about it.

`opening` makes the front end (`server`) when an engine starts; a signal may end that start (`starting`). `operation`
says how exits are treated just now, by the policy file that `watch` reads again. `arguments`, `permissions`, `efforts`,
`sampling`, `grammars` and `callers` judge a request when it is admitted. `reports` keeps what workers say of it;
`streaming`, `metrics` and `tracing` hand that on; `finding` and `finished` answer whoever asks later, over `routes`.
`audit` compares answers, `hold` judges the risk by them, and `imposed` keeps what follows from it. `inner` marks
requests of our own, `own_end` those that have ended by themselves. `traffic` watches whether requests are like those of
the calibration, `drafting` whether the draft guesses at all, and `activity` whether exits are active. `protocols` has
what is used of vLLM's own objects here.
"""
