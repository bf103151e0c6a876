"""The exception tree. A message says what was found, what was expected and what to do about it, in one or two lines."""

from __future__ import annotations

from thaw.wording import for_the_reader


class ThawError(Exception):
    """Whatever a user can mend; the command line prints it in one or two lines and exits with `exit_code`."""

    exit_code = 1
    next_command = ""
    """A command line that goes on from here; the command line shows it whole, however long it is."""

    def __str__(self) -> str:
        """The message, with options named at the command line and arguments elsewhere."""
        return for_the_reader(super().__str__())


class UsageError(ThawError):
    """An option or argument that cannot be what was meant."""

    exit_code = 2


class DataError(ThawError):
    """Something in the images or labels that training must not pass over."""


class RecipeError(UsageError):
    """Every fault of a recipe, reported together, before any data is touched."""


class BudgetError(UsageError):
    """A network that needs more than it may, refused before any training."""


class RunError(ThawError):
    """A run folder that is missing, in use, incomplete or not writable."""


class ModelFileError(ThawError):
    """A model file or checkpoint that is truncated, of another version, or not what it says it is."""


class NotFiniteError(ThawError):
    """A network that answers with NaN or infinity, of which no class can be made."""


class TrainingError(ThawError):
    """Training that cannot go on: a loss that is not finite, a disk that is full."""


class MissingDependencyError(ThawError):
    """An optional package or program is needed here; the message names what to install."""
