"""What a run needs before any TPU is rented: `plan` compiles it (`aot`), reads the program (`hlo`), counts `work`."""
