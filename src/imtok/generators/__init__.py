"""Codes from labels or text."""
