"""Training of tokenizers and generators, from a run's config and data to its folder."""
