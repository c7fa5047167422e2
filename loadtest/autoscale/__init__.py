"""Rules for the number of replicas compared in one simulation: Reelserve's own and its peers'.

A virtual clock, jobs of known work, and replicas that come and go as Ray Serve's do. The policy is
production's (:mod:`autoscale.policy`); the peers are emulations of their rules.
"""
