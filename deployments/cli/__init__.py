"""`reelserve`: the command line. A client of the HTTP API, except `up` and `models install-demo`.

Imports neither Ray, torch nor a model before a command needs it, so that `--help` is instant.
"""
