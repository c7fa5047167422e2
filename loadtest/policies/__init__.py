"""Scheduling policies compared on one executor: Reelserve's own rank and what its peers do.

A discrete-event simulation on a virtual clock over measured costs, and one run in real time on
the real engine beside it. The peers are emulations of their admission policies, not the engines.
"""
