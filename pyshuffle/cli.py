"""What the command lines share: options that name a network, and errors in one line, never a traceback."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from . import nets
from .errors import ArchError, PyShuffleError

FAILED = 2  # as argparse exits
INTERRUPTED = 128 + 2  # as shells report a program that a signal ended: SIGINT
BROKEN_PIPE = 128 + 13  # SIGPIPE

Main = Callable[[list[str] | None], int]


def run(main: Main, argv: list[str] | None = None) -> int:
    """The exit code of `main(argv)`; an error that a user can do something about is said in one line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the program
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115 (as long as the program runs)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    try:
        try:
            return main(argv)
        finally:
            sys.stdout.flush()  # here, where a full disk can still be reported
    except PyShuffleError as error:
        complain(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough
        _abandon_stdout()
        return BROKEN_PIPE
    except OSError as error:
        _abandon_stdout()
        where = error.filename or "on standard output, or in the folder of compiled kernels, NUMBA_CACHE_DIR"
        complain(f"{error.strerror or error}: {where}")
    except MemoryError:
        complain("not enough memory")
    return FAILED


def complain(message: object) -> None:
    """Print a message as one line on stderr, after the name of the program."""
    print(f"{Path(sys.argv[0]).stem}: error: {' '.join(str(message).splitlines())}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: the usage is for `--help`."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see --help)")
        sys.exit(FAILED)


def add_net_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """`--arch`, and an option for every setting of every network. None has a default here: each network has its own."""
    unset = argparse.SUPPRESS
    parser.add_argument("--arch", default=unset, help=f"the network: {', '.join(nets.ARCHS)} (default: {nets.DEFAULT})")
    types: dict[str, Callable[[str], Any]] = {"float": float, "int": int, "str": str}
    for name, kind in _settings().items():
        option = f"--{name.replace('_', '-')}"
        users = f"a setting of {', '.join(arch for arch, net in nets.ARCHS.items() if name in nets.fields(net))}"
        if name in without:
            continue
        for names in {net.choices[name] for net in nets.ARCHS.values() if name in net.choices}:
            users = f"{' or '.join(names)}: {users}"
        if kind.startswith("bool"):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=unset, help=users)
        else:
            parser.add_argument(option, type=types[kind], default=unset, help=users)


def net_from_options(args: argparse.Namespace, **settings: Any) -> nets.Net:
    """The network that the options name, with `settings` besides. Raises ArchError."""
    given = {name: getattr(args, name) for name in net_options(args)}
    return nets.build(**{"arch": nets.DEFAULT, **given, **settings})


def net_options(args: argparse.Namespace) -> list[str]:
    """Those given of the options that name a network."""
    return [name for name in ("arch", *_settings()) if hasattr(args, name)]


def options_of(net: nets.Net) -> str:
    """The options that name a network, without those that say what goes without saying."""
    settings = nets.describe(net)
    for name in [name for name in settings if name not in ("arch", "width")]:
        fewer = {other: value for other, value in settings.items() if other != name}
        with contextlib.suppress(ArchError):
            settings = fewer if nets.build(**fewer) == net else settings
    return " ".join(
        f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name} {value}"
        for name, value in ((name.replace("_", "-"), value) for name, value in settings.items())
    )


def _settings() -> dict[str, str]:
    return {name: kind for net in nets.ARCHS.values() for name, kind in nets.fields(net).items()}


def _abandon_stdout() -> None:
    """Where what was printed can no longer be written, let it go: the interpreter would try again at exit, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
