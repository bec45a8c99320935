"""What runs on the API server's side: `arguments` a request may give, `reports` that go back with its answer.

`streaming` puts reports into chunks, `metrics` counts them, `routes` answers questions, `audit` compares answers.
"""
