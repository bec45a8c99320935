"""Where vLLM is wrapped: `hooks` and `frontend_hooks` are the table of all places.

What is done there is in `wraps` for the engine; for the front end it stands with the rows themselves, in
`request_hooks`, `telemetry_hooks` and `server_hooks`. `fit` says whether an installed vLLM has these places as
expected, `sources` how that is read, `checks` what must hold of a draft. `repairs` mends defects of a released vLLM,
`harmless` keeps a failure of ours from costing a request its answer.
"""
