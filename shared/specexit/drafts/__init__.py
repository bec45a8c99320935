"""The draft directory, the only contract between training and serving, and everything that reads or writes one.

`config` says what a draft is, `tensors` reads and checks its weight files, and `directory` puts the two together;
`target_weights` reads those of a target. `names`, `rope` and `window` hold what both frameworks share. `files` opens
what lies in a stranger's folder.

`policy` says when to exit, and `certified` whether its certificates hold for what is served; `fingerprints` tells
targets apart, and `computation` drafts of the same weights. `hold` keeps what audits have found, and `locking` keeps
two writers apart. `begun` says what a draft was before it was trained, `selection` which prompts chose its checkpoint.

`published` imports other projects' drafts, by their `vocabulary` and `layouts`; `export` and `card` write for other
programs; `migrate` renews an older directory, `inspect` describes one. `verify` compares what both frameworks compute:
`probing` holds what its probes share, `agreement` the bounds, `acceptance` how many drafted tokens a text accepts, and
`verified` the file that it writes.
"""
