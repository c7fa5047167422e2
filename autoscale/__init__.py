"""How many replicas each pool has: signals, the policy, its Ray Serve adapter.

The policy (``values``, ``demand``, ``budget``, ``policy``) is pure: plain values in, plain values
out, the clock passed in; it imports nothing of ours. Only ``adapter`` knows Ray, and nothing here
knows jobs, Redis's keys or torch.
"""
