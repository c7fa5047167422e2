"""Load on a running stack, and how fast it answers: locust users, benchmarks, their results.

A client like any other: it knows the HTTP API and plain values. It must not know Redis, Ray,
the engine, or how a stack is started; the command line starts one where that is needed. The
exception is ``policies``, which compares orders of jobs in one process and runs the real engine.
"""
