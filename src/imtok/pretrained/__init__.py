"""Registry of third-party networks: detectors, judges, and frozen feature networks for losses."""

from imtok.pretrained.entries import REGISTRY
from imtok.pretrained.faces import ARCFACE_TEMPLATE, DLIB_TEMPLATE
from imtok.pretrained.mtcnn import DetectedFaces
from imtok.pretrained.networks import ExtractedFeatures, FeatureExtractor, FeatureNetwork, FrozenNetwork
from imtok.pretrained.readers import Reading
from imtok.pretrained.registry import MissingWeights, fetch, load, status
from imtok.pretrained.text import DetectedLine, DetectedWord

__all__ = [
    "ARCFACE_TEMPLATE",
    "DLIB_TEMPLATE",
    "REGISTRY",
    "DetectedFaces",
    "DetectedLine",
    "DetectedWord",
    "ExtractedFeatures",
    "FeatureExtractor",
    "FeatureNetwork",
    "FrozenNetwork",
    "MissingWeights",
    "Reading",
    "fetch",
    "load",
    "status",
]
