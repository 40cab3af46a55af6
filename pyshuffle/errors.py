"""What can go wrong, one class a kind. Every message names the value and the rule it breaks."""


class PyShuffleError(Exception):
    """The base of all errors that pyshuffle raises on purpose; command lines turn it into one line and exit code 2."""


class ShapeError(PyShuffleError, ValueError):
    """An array of the wrong shape or dtype was given to an operation."""


class ArchError(PyShuffleError, ValueError):
    """There is no such network; the message names the valid ones."""


class WeightsError(PyShuffleError, ValueError):
    """A checkpoint is damaged, unsafe, or belongs to another network."""


class ImageError(PyShuffleError, ValueError):
    """A file is missing, is no image, or is an image that cannot be used."""


class DataError(PyShuffleError, ValueError):
    """A training folder or a labels file cannot be used."""


class TrainingError(PyShuffleError, RuntimeError):
    """Training cannot start, go on, or be resumed."""


class DeviceError(PyShuffleError, RuntimeError):
    """There is no such device, or it cannot be used here."""
