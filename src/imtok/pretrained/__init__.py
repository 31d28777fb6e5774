"""The door to third-party networks: detectors, judges, and frozen feature networks for losses."""

from imtok.pretrained.door import MissingWeights, Source, WeightStatus, fetch, load, status
from imtok.pretrained.networks import FeatureNetwork

__all__ = ["FeatureNetwork", "MissingWeights", "Source", "WeightStatus", "fetch", "load", "status"]
