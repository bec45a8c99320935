"""SpecExit on JAX: target and draft in Flax, losses, data, training and export."""
