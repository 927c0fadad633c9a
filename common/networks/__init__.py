"""Frozen networks that losses, regularizers and metrics share."""
