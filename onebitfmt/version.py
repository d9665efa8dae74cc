"""The version of the package."""

# Without an annotation: the build reads this line.
__version__ = "0.1.0"
