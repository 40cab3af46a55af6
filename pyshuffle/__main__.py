"""All commands under one name: `pyshuffle COMMAND ...`, `pyshuffle-COMMAND ...` or `python -m pyshuffle COMMAND ...`."""

import runpy
import sys
from pathlib import Path

from . import __version__, cli

# The modules that are programs.
COMMANDS = ("accuracy", "audit", "classify", "cuda.check", "export", "trace", "train", "visualise")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    usage = f"pyshuffle COMMAND ..., or --version; COMMAND is one of {', '.join(COMMANDS)}, each with a --help of its own"
    parser = cli.Parser(prog="pyshuffle", usage=usage)
    parser.add_argument("--version", action="version", version=f"pyshuffle {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    command = parser.parse_args(argv[:1]).command
    sys.argv[1:] = argv[1:]
    runpy.run_module(f"pyshuffle.{command}", run_name="__main__", alter_sys=True)  # which exits
    return 0


def program() -> int:
    """What is installed: `pyshuffle`, and `pyshuffle-classify` for `pyshuffle classify` and so on."""
    _, _, command = Path(sys.argv[0]).stem.partition("-")
    return cli.run(main, [command, *sys.argv[1:]] if command else None)


if __name__ == "__main__":
    sys.argv[0] = "pyshuffle"  # is who complains
    sys.exit(program())
