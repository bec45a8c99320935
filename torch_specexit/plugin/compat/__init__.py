"""Where vLLM is wrapped: `hooks` and `frontend_hooks` are the table of all places.

`wraps` says what is done there in the engine; what is done in the front end stands with the rows themselves, in
`request_hooks`, `telemetry_hooks` and `server_hooks`. `fit` says whether an installed vLLM has these places as
expected, and `sources` reads that off its code. `checks` says what must hold of a draft. `repairs` mends defects of a
released vLLM, and `harmless` keeps a failure of ours from costing a request its answer.
"""
