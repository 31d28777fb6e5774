"""Building blocks that are not specific to a paper."""
