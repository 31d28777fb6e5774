"""From a RunConfig and pictures to a trained run folder."""
