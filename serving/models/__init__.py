"""Families: how one architecture turns a specification into latents, steps and frames.

A thin layer over diffusers' own components; only the step and its state are ours.
Knows neither when a job runs nor with whom: no engine, no queue, no HTTP.
"""
