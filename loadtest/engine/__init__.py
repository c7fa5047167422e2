"""How fast the step engine is, in one process, without Ray and Redis.

``work`` is what is run, ``driver`` the engine that runs it, ``timing`` turns repetitions into
figures. ``figures`` has one function for each figure of `reelserve bench engine`. `reelserve bench
gpu` is put together in ``gpu``, of ``kernels``, ``attention``, ``device_figures`` and ``outputs``.
"""

from loadtest.engine.figures import bench_engine

__all__ = ["bench_engine"]
