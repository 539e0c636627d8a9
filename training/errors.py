"""What ends a training run, a mining run or an export with one line instead of a traceback."""

from service.errors import ConfigurationError, EoseekError


class DataError(ConfigurationError, ValueError):
    """Training data that cannot be used; the detail names the file and, where there is one, the line."""


class TrainingDivergedError(EoseekError):
    """A loss or gradient that is not finite; the last checkpoint was written before it."""

    code = "training_diverged"
    title = "Training diverged"


class CheckpointSaveError(EoseekError):
    """A checkpoint that could not be written; the one before it is intact."""

    code = "checkpoint_not_saved"
    title = "Checkpoint not saved"
