"""Readers, sampler and collator."""
