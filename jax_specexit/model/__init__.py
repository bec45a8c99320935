"""Target and draft in Flax: `target` and `draft` are built from `layers` and `attention`.

Attention is `splash` on TPUs and `blockwise` elsewhere; `context` cuts a row's time over chips. `experts` is a mixture
of experts, `cached` a target whose hidden states are stored.
"""
