"""A small text-to-sound model in the architecture of Stable Audio.

:mod:`world` says which sounds there are and which are kept out of training, :mod:`captions` how
they are described, :mod:`render` how they sound, :mod:`checker` what is heard in a clip.
:mod:`latents` says what the codec's latents mean; :mod:`codec`, :mod:`text` and :mod:`denoiser` are
the parts that :mod:`train` trains, and :mod:`measure` says how good they are.
"""
