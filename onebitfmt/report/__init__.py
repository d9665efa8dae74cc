"""Reports for people: what a set of bundles costs on disk."""
