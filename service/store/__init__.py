"""Where documents and their embeddings are kept."""
