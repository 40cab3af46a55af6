"""The files of a training run, each replaced whole.

`state.npz`, from which it can go on; `weights.npz`, for `classify`; and `log.csv`, its curves.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from . import tables
from .errors import TrainingError
from .progress import COLUMNS, Progress
from .settings import Settings
from .types import Params
from .weights import write_atomically

STATE, WEIGHTS, LOG = "state.npz", "weights.npz", "log.csv"


def write_state(path: Path, settings: Settings, progress: Progress, stores: dict[str, Params]) -> None:
    """stores: kind -> name -> array, as a trainer's state."""
    meta = {"settings": dataclasses.asdict(settings), "progress": dataclasses.asdict(progress)}
    arrays: dict[str, np.ndarray] = {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
    for kind, store in stores.items():
        arrays |= {f"{kind}/{name}": array for name, array in store.items()}
    write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def read_state(path: Path) -> tuple[Settings, Progress, dict[str, Params]]:
    """The same back. Raises TrainingError."""
    if not path.is_file():
        raise TrainingError(f"{path}: no such file, so there is no run to resume")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays: Params = dict(archive)
        meta = json.loads(arrays.pop("meta").tobytes())
        stores: dict[str, Params] = {"params": {}, "velocity": {}}
        for key, array in arrays.items():
            kind, _, name = key.partition("/")
            stores[kind][name] = array
        settings = Settings(**{**meta["settings"], "labels": tuple(meta["settings"]["labels"])})
        return settings, Progress(**meta["progress"]), stores
    except Exception as error:  # whatever a damaged archive makes zipfile, json or NumPy say
        raise TrainingError(f"{path}: not a state that can be resumed ({error})") from error


def write_log(path: Path, progress: Progress) -> None:
    text = tables.render(COLUMNS, progress.rows, "csv") + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
