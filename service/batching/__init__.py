"""From token ids to batches on an encoder."""
