"""What can go wrong with a checkpoint, one class for each broken promise.

::

    CheckpointError
    ├── CheckpointNotFoundError       nothing is there
    ├── IncompleteCheckpointError     files without a manifest, or of another size than it names
    ├── DamagedCheckpointError        complete, but some byte is not the one that was written
    │   ├── MismatchedPairError       a model file of one save, an optimizer file of another
    │   └── UnreadableFileError       the system refused to read a file or to list a directory
    ├── UnknownFormatError            readable, but not a checkpoint of any known form
    ├── UntrustedPickleError          reading it would run code
    ├── MissingOptimizerError         a model-only checkpoint was asked for optimizer state
    ├── StateMismatchError            the checkpoint does not fit the objects to restore
    ├── UnsupportedObjectError        an object that no stock reader could load again
    ├── CheckpointLockedError         another process writes into the directory
    └── CheckpointWriteError          the file system refused

Every message says which item, what was expected, what was found and what to do.
"""

from __future__ import annotations


class CheckpointError(Exception):
    """Base of every error that this package raises about checkpoints."""


class CheckpointNotFoundError(CheckpointError):
    """There is no checkpoint at the path."""


class IncompleteCheckpointError(CheckpointError):
    """The commit record is missing, or a file has not the size that it names."""


class DamagedCheckpointError(CheckpointError):
    """The content differs from what was written."""


class UnreadableFileError(DamagedCheckpointError):
    """The system refused to read a file, which may be intact: nobody may remove anything because of it."""


class MismatchedPairError(DamagedCheckpointError):
    """The model file and the optimizer file come from different saves."""


class UnknownFormatError(CheckpointError):
    """The file can be read, but nothing in it says what kind of checkpoint it is."""


class UntrustedPickleError(CheckpointError):
    """The file holds objects that only running its pickle could make."""


class MissingOptimizerError(CheckpointError):
    """Optimizer state was asked of a checkpoint that has none."""


class StateMismatchError(CheckpointError):
    """Names or shapes in the checkpoint differ from those of the objects to restore."""


class UnsupportedObjectError(CheckpointError):
    """An object in the state to save could not be read back by ``torch.load(weights_only=True)``."""


class CheckpointLockedError(CheckpointError):
    """Another process writes into the directory. Nothing was changed."""


class CheckpointWriteError(CheckpointError):
    """A file operation of a save failed. The older checkpoints are untouched."""


class CheckpointWarning(UserWarning):
    """Base of the warnings: something worth one line, nothing that stops a run."""


class DamagedCheckpointWarning(CheckpointWarning):
    """A damaged or unreadable checkpoint was passed over for an older one."""


class EnvironmentChangedWarning(CheckpointWarning):
    """The machine or the software differs from the save in a way that can change bits."""


class InexactResumeWarning(CheckpointWarning):
    """A resume cannot continue in the same bits, for the reason given."""


class SaveFailedWarning(CheckpointWarning):
    """A save failed and training goes on without it, as ``on_save_error="warn"`` asks."""


class RetentionWarning(CheckpointWarning):
    """A retention policy left files in place that it might have removed."""


class StepsNotComparedWarning(CheckpointWarning):
    """Steps behind a save cannot be noted or read: those that are taken again are compared with nothing."""


class UnlockedDirectoryWarning(CheckpointWarning):
    """The file system has no locks: a second writer would not be noticed."""


class LeftoverWarning(CheckpointWarning):
    """A file that is not needed any more could not be removed: of a replaced checkpoint, or of a killed save."""
