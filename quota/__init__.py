"""Quota: tiers and their limits, and the ledger of credits.

It knows plain values and the keys in Redis that limits are kept in; it knows neither HTTP nor jobs.
"""
