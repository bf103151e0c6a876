"""Exceptions. A message says what was found, what was expected and what to do, in one or two lines.

Programs and tests match an error by its class and its `code`. Codes are stable, messages are not.
"""

from __future__ import annotations

from thaw.wording import for_the_reader


class ThawError(Exception):
    """An error that the user can fix. The command line prints it in one or two lines and exits with `exit_code`.

    Attributes:
        code: a stable name of the kind of error, such as "data-labels". A class has a default; errors that a caller may
            want to distinguish have a more specific code, which begins with the code of their class.
        exit_code: the exit status of the command line.
        next_command: a command line that continues the work. It is never truncated.
    """

    code = "error"
    exit_code = 1
    next_command = ""

    def __init__(self, *arguments: object, code: str = "") -> None:
        super().__init__(*arguments)
        if code:
            self.code = code

    def __str__(self) -> str:
        """The message. It names options on the command line, and arguments elsewhere."""
        return for_the_reader(super().__str__())


class UsageError(ThawError):
    """An option or argument with an invalid value."""

    code = "usage"
    exit_code = 2


class DataError(ThawError):
    """Images or labels that cannot be used for training, evaluation or prediction."""

    code = "data"


class RecipeError(UsageError):
    """A recipe with invalid settings. All faults are reported together, before any data is read."""

    code = "recipe"


class BudgetError(UsageError):
    """A network that exceeds an upper limit on its cost. Raised before any training."""

    code = "budget"


class RunError(ThawError):
    """A run folder that is missing, in use, incomplete or not writable."""

    code = "run"


class ModelFileError(ThawError):
    """A model file or checkpoint that is missing, truncated, damaged or of another format version."""

    code = "model-file"


class NotFiniteError(ThawError):
    """A network that computes NaN or infinity, so that it predicts no class."""

    code = "not-finite"


class TrainingError(ThawError):
    """Training that cannot continue: the loss is not finite, or the disk is full."""

    code = "training"


class MissingDependencyError(ThawError):
    """An optional package or program is missing. The message names what to install."""

    code = "missing-dependency"
