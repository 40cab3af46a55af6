"""How far a training run has come, and the lines that tell it."""

import dataclasses
import sys
from dataclasses import dataclass

COLUMNS = ("epoch", "step", "rate", "loss", "accuracy", "held_out_loss", "held_out_accuracy", "images_per_second", "seconds")


@dataclass
class Progress:
    """The sums are those of the epoch that a run is in."""

    step: int = 0
    loss: float = 0.0  # summed over the images
    right: int = 0  # images named rightly
    seen: int = 0  # images
    seconds: float = 0.0
    rows: list[list[float]] = dataclasses.field(default_factory=list)  # of the log: COLUMNS of each epoch

    def add(self, value: float, right: int, images: int, seconds: float) -> None:
        self.step += 1
        self.loss += value * images
        self.right += right
        self.seen += images
        self.seconds += seconds

    def close_epoch(self, epoch: int, rate: float, held_out: tuple[float, float]) -> None:
        means = self.loss / self.seen, self.right / self.seen
        self.rows.append([epoch, self.step, rate, *means, *held_out, self.seen / self.seconds, self.seconds])
        self.loss, self.right, self.seen, self.seconds = 0.0, 0, 0, 0.0

    def within_epoch(self, epoch: int, epochs: int, steps: int, batch: int) -> str:
        """The line within an epoch. epochs, steps: of the whole run; batch: images of a step."""
        left = duration((steps - self.step) * batch * self.seconds / self.seen)
        return (
            f"epoch {epoch}/{epochs}  step {self.step}/{steps}  loss {self.loss / self.seen:.3f}  "
            f"accuracy {self.right / self.seen:.1%}  {self.seen / self.seconds:.0f} images/s  {left} left"
        )

    def after_epoch(self, epochs: int) -> str:
        """The last row of the log."""
        epoch, _, _, loss, accuracy, held_loss, held_accuracy, speed, seconds = self.rows[-1]
        return (
            f"epoch {epoch}/{epochs}  loss {loss:.3f}  accuracy {accuracy:.1%}  held-out loss {held_loss:.3f}  "
            f"held-out accuracy {held_accuracy:.1%}  {speed:.0f} images/s  {seconds:.0f} s"
        )


def say(line: str, end: str = "\n") -> None:
    print(f"{line:100}" if sys.stdout.isatty() else line, end=end, flush=True)


def duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {int(seconds) % 60:02} s"
