"""What a run needs before any TPU is rented: `plan` compiles it (`aot`), reads the program (`hlo`), counts `work`.

`timeline` says which collectives are waited for, `estimate` guesses the time, at the published shares of a chip's peak
in `efficiency`; `hbm` says what to change where a program does not fit, `page` writes the table of docs/planning.md.
"""
