"""Adapters to the protocols of other packages, each imported only when it is used."""
