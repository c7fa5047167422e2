"""What is asked for and what it costs: catalog, clip specification, cost model, errors.

Plain values and pure functions, so that the simulator can run the production code.
Imports nothing of ours, and neither torch, Redis, Ray nor HTTP; everyone may import it.
"""
