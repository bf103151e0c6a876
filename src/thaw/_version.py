"""The version of the package. The build and the run records read it from here."""

__version__ = "0.1.0"
