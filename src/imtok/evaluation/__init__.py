"""Evaluation of reconstructions and of generated pictures."""
