"""The draft directory, the only contract between training and serving, and everything that reads or writes one.

`config` says what a draft is and `tensors` how its files are read and trusted; `directory` puts the two together,
and `target_weights` reads those of a target. `names`, `rope` and `window` hold what both frameworks share. Other
people's folders are read through `files`.

`policy` is when to exit; `certified` says whether its certificates hold for what is served, by the `fingerprints` of
targets; `hold` is what audits have found, and `locking` keeps two writers apart. What a draft was before it was trained
stands in `begun`, which prompts chose its checkpoint in `selection`.

`published`, its `vocabulary` and `layouts` read other projects' drafts; `export` and `card` write for other programs;
`migrate` renews an older directory, `inspect` says what is there. `verify` compares what both frameworks compute: by
`probing` them, within the bounds of `agreement`, with the `acceptance` of what they draft; `verified` is its file.
"""
