"""Bundles and collections to and from the Hub: what to fetch, what to publish, the model card."""
