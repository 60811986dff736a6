"""Stands in for the FlashAttention package, so that it is found; nothing calls it."""
