"""Quota: tiers and their limits, packs, the ledger of credits, and payments.

It knows plain values and the keys in Redis that all this is kept in. It asks a payment provider
over HTTP; it serves none, and knows no jobs.
"""
