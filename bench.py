"""How long one forward pass takes: `python bench.py --arch v2 --width 1.0`."""

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np

from pyshuffle import cli, nets
from pyshuffle.backends.cost import count
from pyshuffle.backends.numba import Numba
from pyshuffle.errors import ShapeError
from pyshuffle.init import initialise


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    nets.check_size(args.size)
    if min(args.batch, args.repeats) < 1:
        raise ShapeError(f"batch={args.batch}, repeats={args.repeats}: both must be at least 1")
    net = cli.net_from_options(args)
    rows = count(net, args.size)
    macs = sum(row.macs for row in rows)
    print(f"{net}")
    print(f"{macs / 1e6:.2f} million multiply-adds, {sum(row.params for row in rows):,} parameters")

    ops = Numba(initialise(net))
    images = np.random.default_rng(0).standard_normal((args.batch, args.size, args.size, 3)).astype(np.float32)
    first, *times = [seconds(net, ops, images) for _ in range(args.repeats + 3)]
    median, slow = np.percentile(times[2:], (50, 90))  # two more to burn in
    print(f"first call {first:.2f} s (compiles, or loads what was compiled before)")
    print(
        f"batch {args.batch}, {args.size} x {args.size}: median {median * 1e3:.2f} ms, 90th percentile {slow * 1e3:.2f} ms, "
        f"{args.batch / median:.1f} images/s, {2 * macs * args.batch / median / 1e9:.1f} GFLOP/s"
    )
    return 0


def seconds(net: nets.Net, ops: Numba, images: np.ndarray) -> float:
    began = time.perf_counter()
    net(ops, images)
    return time.perf_counter() - began


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(prog="bench", description="Time one forward pass.")
    cli.add_net_options(parser)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(cli.run(main))
