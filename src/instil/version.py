"""The version of the package, which every run writes down."""

__version__ = "0.1.0"
