"""The scripts of the queue under load: production's own calls, over raw sockets, on one Redis.

It knows ``serving.jobs``, whose calls it makes, and nothing of HTTP, Ray or models. Whoever calls
it says where Redis is.
"""
