"""Payments: what a provider says of money, and what follows from it for the ledger."""
