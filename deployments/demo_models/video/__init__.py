"""A text-to-video checkpoint in Wan's architecture, for a world of coloured shapes that move.

``world`` says what there is to see and how it is called, ``checker`` finds out what a clip shows,
``codec`` and ``denoiser`` are trained by ``train``, and ``measure`` tells how good they are.
"""
