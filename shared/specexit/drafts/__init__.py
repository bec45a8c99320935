"""The draft directory, the only contract between training and serving.

`directory` reads and writes one, `verify` compares what both frameworks compute from it.
"""
