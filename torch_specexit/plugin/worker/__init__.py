"""What runs in vLLM's workers: the draft `model`, and the exit rule around each step.

`llama` and `qwen3` are `model` for one model type each. `exits` does what is done around a step, `requests` knows the
requests of a runner, `asked` says what each gets, `runner_v1` and `runner_v2` hold what only one runner has, and
`protocols` lists what is used of vLLM's objects. `rule` defines the tables that the rule works on, and `slots` says
which rows belong to whom; `kernel`, `kernel_rows` and `fused` are the rule in Triton, `twin` is the rule in Python.
`ranks` has all ranks judge alike, `openings` says if a prompt opens the thinking, `loops` finds thinking that goes
in circles, `reading` and `checking` work rows out from tokens alone, `copies` brings news to the host, and `weights`
knows whether the draft is whole. `interrupt` lets a client end the thinking, `forbidden` says where an exit may not
write, and `logprobs` corrects those of forced tokens.
"""
