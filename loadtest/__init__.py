"""Load on a running stack, and how fast it answers: locust users, benchmarks, their results.

A client like any other: it knows the HTTP API and plain values. It must not know Redis, Ray,
the engine, or how a stack is started; the command line starts one where that is needed. Three are
exceptions: ``queue`` calls the queue's scripts on a Redis it is given, ``engine`` measures the real
engine and ``policies`` compares orders of jobs, both in one process.
"""
