"""Routed models in memory: weights rebuilt when they are first needed, from bits kept packed."""
