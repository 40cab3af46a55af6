"""A training run, and the folder it lives in.

What it keeps there is in run_files.py; while it lasts, a file without a name holds the decoded images, up to 4 GB of them.

Everything random comes from the seed, the epoch and the image, and the kernels give the same bits for any number of threads, so a
run that is killed and resumed ends with exactly the weights of one that was not.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from . import cli, device, nets, plots, weights
from .backends.cost import parameter_shapes
from .data import Batch, Decoder, ImageFolder, measuring_batches, training_batches
from .errors import TrainingError
from .init import initialise
from .progress import COLUMNS, Progress, say
from .run_files import LOG, STATE, WEIGHTS, read_state, write_log, write_state
from .settings import Settings
from .sgd import learning_rate

INTERVAL = 30, 0.2  # seconds from one line to the next within an epoch: in a file, and on a terminal
STATISTICS = 8192  # images from which the running statistics are computed anew at the end


class Run:
    """A training run and the folder it lives in."""

    def __init__(self, out: Path, settings: Settings, save_every: float, plot: Path | None = None) -> None:
        if not 0 <= save_every < math.inf:
            raise TrainingError(f"save_every={save_every} is not in [0, inf)")
        self.out, self.settings, self.save_every, self.plot = out, settings, save_every, plot
        self.net = nets.build(**settings.net)
        folder = ImageFolder.scan(Path(settings.data))
        if folder.fingerprint() != settings.images:
            raise TrainingError(f"the images in {settings.data} are not those that the run in {out} was started with")
        self.train, self.held_out = folder.hold_out(settings.hold_out)
        self.decode, self.told = Decoder(out), 0
        self.batch = min(settings.batch, len(self.train))
        self.steps_per_epoch = len(self.train) // self.batch
        self.steps = settings.epochs * self.steps_per_epoch
        self.trainer = device.trainer(settings.device)(
            self.net, initialise(self.net, settings.seed), settings.decay, settings.smoothing
        )
        self.progress = Progress()
        self.saved_at = self.reported_at = time.monotonic()
        self.stopping = False

    @classmethod
    def resume(cls, out: Path, given: dict[str, Any], save_every: float, plot: Path | None = None) -> "Run":
        """The run whose state lies in `out`. `given` are settings named again, which must be those of the run."""
        if out.is_file():
            raise TrainingError(f"{out} is a file: --resume takes the folder of a run")
        settings, progress, stores = read_state(out / STATE)
        known = {**settings.net, **dataclasses.asdict(settings)}
        for name, value in given.items():
            if name not in known:
                raise TrainingError(f"{out} is a run of {settings.net['arch']}, which has no setting {name!r}")
            if name != "data" and known[name] != value:  # the images may have moved
                raise TrainingError(f"{out} is a run with {name}={known[name]}: it cannot be resumed with {name}={value}")
        run = cls(out, dataclasses.replace(settings, data=given.get("data", settings.data)), save_every, plot)
        run.progress = progress
        run.trainer.restore(stores)
        return run

    def start_from(self, path: Path) -> None:
        """Begin with the weights in a file; of a network with another number of classes, with all but the classifier.

        Raises WeightsError for a file that holds none, TrainingError for those of another network.
        """
        checkpoint = weights.load(path)
        if nets.describe(checkpoint.net) | {"classes": self.net.classes} != nets.describe(self.net):
            has, needs = (cli.options_of(net) for net in (checkpoint.net, self.net))
            raise TrainingError(f"{path} is of the network {has}, and the run is one of {needs}")
        shapes = parameter_shapes(self.net)
        params = {name: array for name, array in checkpoint.params.items() if array.shape == shapes[name]}
        self.trainer.restore({"params": params})
        if len(params) < len(shapes):
            anew = ", ".join(name for name in shapes if name not in params)
            say(f"{path} knows {checkpoint.net.classes} classes and the run {self.net.classes}: anew begins {anew}")
        elif checkpoint.labels and checkpoint.labels != self.settings.labels:
            say(f"{path} knows as many classes by other names: its classifier is kept")

    def run(self) -> None:
        """Train to the end, or until `stopping` is set; either way the state is saved."""
        with np.errstate(all="ignore"):  # what overflows is looked for, and told, in the results
            while not self.stopping and (self.progress.step < self.steps or self.progress.seen):
                self.save()
                epoch, start = divmod(self.progress.step, self.steps_per_epoch)
                if start == 0 and self.progress.seen:  # the steps of an epoch are done, measuring what came of them is not
                    self.close_epoch(epoch)
                else:
                    self.train_epoch(epoch + 1, start)
        self.save()
        self.publish()

    def train_epoch(self, epoch: int, start: int) -> None:
        """The steps of an epoch, counted from 1, from number `start` on."""
        began = time.monotonic()
        for images, labels in self.batches(epoch, start):
            value, right = self.trainer.step(images, labels, self.rate(self.progress.step)) if len(labels) else (0.0, 0)
            if not math.isfinite(value):
                raise TrainingError(f"the loss is {value} in epoch {epoch} at step {self.progress.step + 1}: {self.last_good()}")
            now = time.monotonic()
            self.progress.add(value, right, len(labels), now - began)
            began = now
            self.name_skipped()
            self.report(epoch)
            if self.stopping:
                return
            if now - self.saved_at > self.save_every:
                self.save()
        if not self.progress.seen:
            raise TrainingError(f"{self.settings.data}: of the images to train on not one can be decoded")

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Those of an epoch, counted from 1, from number `start` on."""
        s = self.settings
        return training_batches(self.train, s.preprocess(s.size), self.batch, s.seed, epoch, start, self.decode, s.min_area)

    def close_epoch(self, epoch: int) -> None:
        """Measure what an epoch has come to, and make it known. After the last one, the statistics are those of the last weights."""
        s = self.settings
        if epoch == s.epochs:
            self.trainer.recompute(islice(self.batches(epoch, 0), max(1, STATISTICS // self.batch)))
        held_out = self.trainer.measure(measuring_batches(self.held_out, s.preprocess(s.shown), self.batch, self.decode))
        self.name_skipped()
        self.progress.close_epoch(epoch, self.rate(self.progress.step - 1), held_out)
        self.publish()
        skipped = f"  {self.told} image{'s' * (self.told > 1)} skipped" if self.told else ""
        say(self.progress.after_epoch(s.epochs) + skipped)

    def rate(self, step: int) -> float:
        return learning_rate(step, self.steps, self.steps_per_epoch, self.settings.rate * self.batch / 1024)

    def save(self) -> None:
        """Write the state. What is not finite is not saved: the last good state stays."""
        state = self.trainer.state()
        if not all(np.isfinite(array).all() for array in state["params"].values()):
            raise TrainingError(f"a parameter is not finite after step {self.progress.step}: {self.last_good()}")
        write_state(self.out / STATE, self.settings, self.progress, state)
        self.saved_at = time.monotonic()

    def last_good(self) -> str:
        return f"the last good state is {self.out / STATE}; try a lower --rate"

    def publish(self) -> None:
        """Write what others read: the weights and the curves."""
        s = self.settings
        checkpoint = weights.Checkpoint(self.net, self.trainer.state()["params"], s.labels, s.preprocess(s.shown))
        weights.save(self.out / WEIGHTS, checkpoint)
        write_log(self.out / LOG, self.progress)
        if self.plot and self.progress.rows:
            figure = plots.sheet(self.plot)
            plots.curves([dict(zip(COLUMNS, row, strict=True)) for row in self.progress.rows], figure)
            plots.save(figure, self.plot)

    def name_skipped(self) -> None:
        """Each image that cannot be decoded, once."""
        faults = list(self.decode.faults.values())
        for fault in faults[self.told :]:
            print(f"skipped {fault}", file=sys.stderr, flush=True)
        self.told = len(faults)

    def report(self, epoch: int) -> None:
        """One line that overwrites itself on a terminal, and one every half minute elsewhere."""
        now, terminal = time.monotonic(), sys.stdout.isatty()
        if self.progress.seen and now - self.reported_at >= INTERVAL[terminal]:
            self.reported_at = now
            say(self.progress.within_epoch(epoch, self.settings.epochs, self.steps, self.batch), "\r" if terminal else "\n")
