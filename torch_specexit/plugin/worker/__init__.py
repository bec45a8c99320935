"""What runs in vLLM's workers: the draft `model`, and the exit rule around each step.

`llama` and `qwen3` are `model` for a model type each. `exits` is what is done around a step, `requests` what is known
of a request, `asked` what one gets, `runner_v1` and `runner_v2` what only one runner has, `protocols` what is used of
vLLM's objects. `rule` says what the rule works on, on the device, and `slots` which rows of it belong to whom;
`kernel`, its `kernel_rows` and `fused` are the rule in Triton, `twin` in Python. `ranks` has all ranks judge alike,
`openings` finds whether a prompt opens the thinking and `loops` one that goes in circles, `reading` and `checking` work
rows out from tokens alone, `copies` brings news to the host, `weights` knows whether the draft is whole, `interrupt` is
what a client may do and `forbidden` what one does not want written, `logprobs` corrects those of forced tokens, `cost`
says what a step costs.
"""
