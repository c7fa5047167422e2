"""The small checkpoints that Reelserve ships: their worlds, their training, and how good they are.

``weights/`` holds them; :func:`install` puts one where models are loaded from.
"""

from deployments.demo_models.install import install

__all__ = ["install"]
