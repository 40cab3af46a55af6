"""Other runtimes on the same network with the same parameters, each in a process of its own, for bench.py to compare with.

`Peer("onnxruntime", job)` starts one; `peer.answer` is what it says to the images, `peer.time(calls)` the seconds of each call, and
`peer.memory()` the most bytes that it has held. pyshuffle is one of them, so that both sides are measured in the same way. A job is
to give logits, or to train: then a call is a step, and the answer the losses of the first two. All but pyshuffle need the extra
`peers`.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import device, memory
from .backends.ops import Ops
from .errors import PyShuffleError, ShapeError
from .nets import Net
from .ops.check import EPS
from .stopwatch import seconds
from .types import Array, Params

STEPS = 2  # of training whose losses are compared: the second shows the gradients
RATE = 1e-5  # at 0.01 one step throws the stem's weights away (deviation 0.01), and the next loss shows how float32 was rounded
BATCHNORM = ("running_mean", "running_var", "weight", "bias")


class Job(NamedTuple):
    """What is to be timed."""

    net: Net
    params: Params
    images: Array  # (N, H, W, 3)
    threads: int
    train: bool = False
    device: str = "cpu"

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Of the images, for training."""
        return np.arange(len(self.images)) % self.net.classes


def pyshuffle(job: Job) -> Callable[[], Array]:
    if job.train:
        import numba

        try:
            numba.set_num_threads(job.threads)
        except ValueError as error:
            raise ShapeError(f"threads={job.threads}: {error}") from None
        trainer = device.trainer(job.device)(job.net, {name: array.copy() for name, array in job.params.items()})

        def step() -> Array:
            value, _ = trainer.step(job.images, job.labels, RATE)
            trainer.wait()
            return np.array(value)

        return step
    threads = {"threads": job.threads} if job.device == "cpu" else {}
    model = device.compiler(job.device).compile(job.net, job.params, job.images.shape, **threads)
    return lambda: model(job.images)


def onnxruntime(job: Job) -> Callable[[], Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = job.threads, 3
    session = onnxruntime.InferenceSession(_onnx(job), options, providers=["CPUExecutionProvider"])
    images = _channels_first(job.images)
    return lambda: session.run(None, {"image": images})[0]


def openvino(job: Job) -> Callable[[], Array]:
    import openvino

    images = _channels_first(job.images)
    core = openvino.Core()
    model = core.read_model(_onnx(job))
    model.reshape(images.shape)
    settings = {"INFERENCE_NUM_THREADS": job.threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer({0: images}, share_inputs=True)[0]


def ncnn(job: Job) -> Callable[[], Array]:
    import ncnn
    import pnnx

    images = _channels_first(job.images)
    net = ncnn.Net()
    net.opt.num_threads = job.threads
    for setting in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage", "use_int8_inference"):
        setattr(net.opt, setting, False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "model.onnx").write_bytes(_onnx(job))
        shape = f"inputshape=[1,{','.join(map(str, images.shape[1:]))}]"
        subprocess.run([pnnx.EXEC_PATH, "model.onnx", shape, "fp16=0"], cwd=path, check=True, capture_output=True)
        net.load_param(str(path / "model.ncnn.param"))
        net.load_model(str(path / "model.ncnn.bin"))

    def run() -> Array:  # ncnn has no batches
        answers = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("in0", ncnn.Mat(image))
            answers.append(np.array(extractor.extract("out0")[1]))
        return np.stack(answers)

    return run


def torch(job: Job, channels_last: bool, compiled: bool) -> Callable[[], Array]:
    import torch

    torch.set_num_threads(job.threads)
    if job.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("it finds no GPU, or is built without CUDA")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 on both sides
    ops, tensors = _torch_ops(job)
    images = torch.from_numpy(_channels_first(job.images))
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
        tensors.update({name: t.to(memory_format=torch.channels_last) for name, t in tensors.items() if t.ndim == 4})
    if job.train:
        return _torch_training(job, ops, tensors, images, compiled)

    def forward(x: Any) -> Any:
        return job.net(ops, x)

    logits_of = torch.compile(forward) if compiled else forward

    def run() -> Array:
        with torch.inference_mode():
            return logits_of(images.to(job.device)).cpu().numpy()  # copies there and back, as ours

    return run


def _torch_training(job: Job, ops: Ops[Any], tensors: dict[str, Any], images: Any, compiled: bool) -> Callable[[], Array]:
    import torch

    from .settings import DECAY, MOMENTUM, SMOOTHING  # here, as what gives logits does without

    labels = torch.from_numpy(job.labels).to(job.device)
    learnt = [tensor.requires_grad_() for name, tensor in tensors.items() if name.endswith(("weight", "bias"))]
    filters, others = ([tensor for tensor in learnt if (tensor.ndim > 1) == many] for many in (True, False))
    groups = [{"params": filters, "weight_decay": DECAY}, {"params": others}]
    optimiser = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)

    def forward(x: Any) -> Any:
        return torch.nn.functional.cross_entropy(job.net(ops, x), labels, label_smoothing=SMOOTHING)

    loss_of = torch.compile(forward) if compiled else forward

    def run() -> Array:
        optimiser.zero_grad()
        loss = loss_of(images.to(job.device))
        loss.backward()
        optimiser.step()
        return np.array(loss.item())

    return run


def _torch_ops(job: Job) -> tuple[Ops[Any], dict[str, Any]]:
    """The operations, and the tensors that they use."""
    import torch
    from torch.nn import functional

    from . import weights  # here, as the others do without

    published = weights.published(weights.Checkpoint(job.net, job.params))
    tensors = {name: torch.tensor(array, device=job.device) for name, array in published.items()}

    class Torch(Ops[Any]):
        """The network by PyTorch, channels first."""

        def conv(self, x: Any, name: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Any:
            return functional.conv2d(x, tensors[f"{name}.weight"], None, stride, kernel // 2, 1, groups)

        def depthwise(self, x: Any, name: str, stride: int = 1) -> Any:
            return functional.conv2d(x, tensors[f"{name}.weight"], None, stride, 1, 1, x.shape[1])

        def batchnorm(self, x: Any, name: str) -> Any:
            return functional.batch_norm(x, *(tensors[f"{name}.{entry}"] for entry in BATCHNORM), training=job.train, eps=EPS)

        def relu(self, x: Any, limit: float = math.inf) -> Any:
            return functional.relu(x) if limit == math.inf else functional.hardtanh(x, 0.0, limit)

        def maxpool(self, x: Any) -> Any:
            return functional.max_pool2d(x, 3, 2, 1)

        def avgpool(self, x: Any) -> Any:
            return functional.avg_pool2d(x, 3, 2, 1)

        def split(self, x: Any) -> tuple[Any, Any]:
            left, right = x.chunk(2, dim=1)
            return left, right

        def concat(self, a: Any, b: Any) -> Any:
            return torch.cat((a, b), dim=1)

        def shuffle(self, x: Any, groups: int) -> Any:
            return functional.channel_shuffle(x, groups)

        def add(self, a: Any, b: Any) -> Any:
            return a + b

        def mean(self, x: Any) -> Any:
            return x.mean((2, 3))

        def linear(self, x: Any, name: str, out: int, bias: bool = True) -> Any:
            return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"] if bias else None)

    return Torch(), tensors


def _onnx(job: Job) -> bytes:
    from .backends.onnx import model

    return model(job.net, job.params, job.images.shape[1:3]).SerializeToString()


def _channels_first(images: Array) -> Array:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


RUNTIMES: dict[str, Callable[[Job], Callable[[], Array]]] = {
    "pyshuffle": pyshuffle,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ncnn": ncnn,
    "torch": partial(torch, channels_last=False, compiled=False),
    "torch_channels_last": partial(torch, channels_last=True, compiled=False),
    "torch_compiled": partial(torch, channels_last=True, compiled=True),
}
TRAINERS = [name for name in RUNTIMES if name.startswith(("pyshuffle", "torch"))]


def require(name: str, train: bool, on: str) -> None:
    """Raises PyShuffleError where no such runtime is known, or it is not installed."""
    known = TRAINERS if train or on != "cpu" else list(RUNTIMES)
    if name not in known:
        which = f"{' that trains' if train else ''}{f' on {on}' if on != 'cpu' else ''}"
        raise PyShuffleError(f"there is no peer {name!r}{which}: choose from {', '.join(known[1:])}")
    if importlib.util.find_spec(name.partition("_")[0]) is None:
        raise PyShuffleError(f"{name} is not installed: pip install 'pyshuffle[peers]'")


class Peer:
    """A runtime at work in another process, which imports nothing of the program that starts it: the network's class has to be in a
    module. Raises PyShuffleError where the runtime is not installed or fails."""

    def __init__(self, name: str, job: Job) -> None:
        require(name, job.train, job.device)
        self.name = name
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, name, job), daemon=True)
        # A new process imports the program that begins it: numba with it, which would count as the peer's memory, and does so before
        # it can be told of how many threads. So it is given an empty one.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            self.process.start()
        finally:
            sys.modules["__main__"] = main
        theirs.close()
        self.answer: Array = self._receive()

    def time(self, calls: int) -> list[float]:
        """The seconds of each of so many calls, one after the other."""
        self.pipe.send(calls)
        return self._receive()

    def memory(self) -> int:
        """The most bytes that the process has held so far; 0 where that cannot be known."""
        return memory.peak(self.process.pid or 0)

    def close(self) -> None:
        self.pipe.close()
        self.process.join(5)
        self.process.kill()

    def _receive(self) -> Any:
        try:
            answer = self.pipe.recv()
        except EOFError:
            answer = RuntimeError("its process ended")
        if isinstance(answer, ModuleNotFoundError):
            raise PyShuffleError(f"{self.name} is not installed ({answer}): pip install 'pyshuffle[peers]'")
        if isinstance(answer, Exception):
            raise PyShuffleError(f"{self.name} failed: {type(answer).__name__}: {answer}")
        return answer


def _serve(pipe: Connection, name: str, job: Job) -> None:
    """In the other process: the answer, then times for as long as they are asked for."""
    if hasattr(os, "sched_setaffinity"):  # all peers on the same cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(job.threads)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (some greet)
    try:
        run = RUNTIMES[name](job)
        pipe.send(np.array([run() for _ in range(STEPS)] if job.train else run()))
        while True:
            pipe.send([seconds(run) for _ in range(pipe.recv())])
    except EOFError:
        return
    except Exception as error:
        pipe.send(error if isinstance(error, ModuleNotFoundError) else RuntimeError(str(error)))
