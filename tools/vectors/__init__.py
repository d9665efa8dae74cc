"""The generator of the test vectors of the specification."""
