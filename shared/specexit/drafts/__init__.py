"""The draft directory, the only contract between training and serving, and everything that reads or writes one.

`config` says what a draft is and `tensors` how its files are read and trusted; `directory` puts the two together;
`names` and `rope` hold what both frameworks share. `policy` is when to exit. `published` and `layouts` read other
projects' drafts, `export` and `card` write for other programs, `inspect` says what is there, and `verify` compares what
both frameworks compute.
"""
