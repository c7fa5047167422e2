"""Families: how one architecture turns a specification into latents, steps and frames.

A thin layer over diffusers' own components; only the step and its state are ours. What
speaks is a thin layer too, over espeak-ng, transformers or a model server.
Knows neither when a job runs nor with whom: no engine, no queue, no HTTP.
"""
