"""Tensor to bytes and back: one module a coding of the specification."""
