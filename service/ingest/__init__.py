"""From incoming documents to durable points."""
