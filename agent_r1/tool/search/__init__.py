"""Corpora of passages and indices over them."""
