"""From pairs of texts to checkpoints that the service loads."""
