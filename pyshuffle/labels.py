"""The names of classes, from a text file."""

from pathlib import Path

from .errors import DataError


def read_labels(file: Path, classes: int) -> tuple[str, ...]:
    """One name a line, in UTF-8 -> a name for each class. Raises DataError, naming the file and what is wrong with it."""
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: not text in UTF-8") from error
    if len(lines) != classes:
        raise DataError(f"{file}: {len(lines)} labels for {classes} classes")
    return tuple(line.strip() for line in lines)
