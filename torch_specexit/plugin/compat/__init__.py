"""Where vLLM is wrapped: `hooks` and `frontend_hooks` are the table of all places, `wraps` what is done there.

`fit` says whether an installed vLLM has them as expected, `sources` how that is read, `checks` what must hold of a
draft.
"""
