"""Target and draft in Flax: `target` and `draft` are built from `layers`, `attention` and, on TPUs, `splash`."""
