"""What runs in vLLM's workers: the draft `model`, and the exit rule around each step.

`rule` says what the rule works on, on the device, and `slots` which rows of it belong to whom; `fused` and `kernel` are
the rule in Triton, `twin`, `batch` and `late` in eager torch; `runner` is what is done around a step, `cost` what it
costs.
"""
