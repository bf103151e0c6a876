"""The version, in its one place: the build reads it from here, and so does whatever writes it into a run."""

__version__ = "0.1.0"
