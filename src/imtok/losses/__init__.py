"""Tensors in, named scalars out."""
