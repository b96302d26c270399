"""Perdure and its peers, side by side. See README.md."""
