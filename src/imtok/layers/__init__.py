"""Building blocks that know no paper."""
