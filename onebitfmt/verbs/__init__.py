"""The verbs: checkpoint to bundle, bundle to checkpoint, and the check of a bundle."""
