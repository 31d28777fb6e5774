"""Codes and latents from labels or text."""
