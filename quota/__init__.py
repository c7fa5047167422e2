"""Quota: tiers and their limits, and later the credit ledger and payments.

It knows plain values and the keys in Redis that limits are kept in; it knows neither HTTP nor jobs.
"""
