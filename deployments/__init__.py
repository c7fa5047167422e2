"""How Reelserve runs: the Ray Serve application, the local stack, the command line, the catalog.

The only room that knows every other. What a job is, how it is queued and how a step works is
decided elsewhere; here the parts are connected and kept running.
"""
