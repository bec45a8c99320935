"""SpecExit on PyTorch: the draft module, trace collection, the vLLM plug-in and the benchmark."""
