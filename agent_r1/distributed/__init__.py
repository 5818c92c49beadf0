"""One training run over several processes, cards and machines."""
