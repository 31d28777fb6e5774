"""Pictures and their annotations: reading, storing, cropping and batching."""
