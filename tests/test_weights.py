"""Checkpoints: every format there and back, published ones of three families, and every way in which a file can be bad."""

import dataclasses
import errno
import functools
import io
import json
import os
import pickle
import runpy
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mutate import safetensors

from pyshuffle import containers, torchfile, weights
from pyshuffle.backends.cost import parameter_shapes
from pyshuffle.backends.reference import Reference
from pyshuffle.errors import WeightsError
from pyshuffle.image import AUTHORS, TORCHVISION, Preprocess
from pyshuffle.init import initialise
from pyshuffle.nets import ARCHS, ShuffleNetV1, ShuffleNetV2, build, describe
from pyshuffle.ops import batchnorm, conv, depthwise, linear, pool

DATA = Path(__file__).parent / "data"
MAKE = runpy.run_path(str(DATA / "make_checkpoints.py"))
authors_v1, authors_v2, zoo = (MAKE[name] for name in ("authors_v1", "authors_v2", "zoo"))
SMALL = MAKE["V2"]
FORMATS = ["npz", "safetensors", "zip", "stream"]
STORAGES = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<f8": "DoubleStorage", "<i8": "LongStorage", "<i4": "IntStorage"}
STORAGES |= {f">{code[1:]}": storage for code, storage in STORAGES.items()}


def entries(*settings):
    return dict(drawn(*settings))


drawn = functools.cache(MAKE["entries"])


# Containers written by hand


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value) if abs(value) < 1 << 31 else b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def sequence(*items):
    return b"(" + b"".join(items) + b"t"


def known(module, name):
    return f"c{module}\n{name}\n".encode()


def mapping(items):
    return b"}(" + b"".join(text(name) + item for name, item in items.items()) + b"u"


def tensor(key, shape, offset=0, stride=None, storage="FloatStorage"):
    if stride is None:
        stride = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    place = sequence(text("storage"), known("torch", storage), text(key), text("cpu"), number(1)) + b"Q"
    views = sequence(*map(number, shape)), sequence(*map(number, stride))
    return known("torch._utils", "_rebuild_tensor_v2") + sequence(place, number(offset), *views, b"\x89", b"}") + b"R"


def stream_file(body, storages=(), little=True):
    """A stream container: body is the object's pickle without its frame, storages its arrays by key."""
    magic = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
    system = mapping({"protocol_version": number(1001), "little_endian": b"\x88" if little else b"\x89"})
    keys = b"](" + b"".join(text(key) for key in storages) + b"e"
    content = b"".join(b"\x80\x02" + part + b"." for part in (magic, b"M\xe9\x03", system, body, keys))
    for array in dict(storages).values():
        content += struct.pack("<q" if little else ">q", array.size) + array.tobytes()
    return content


def zip_file(body, storages=(), order=b"little", compression=zipfile.ZIP_STORED, prefix="net/"):
    """A zip container of the same."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(f"{prefix}data.pkl", b"\x80\x02" + body + b".")
        if order:
            archive.writestr(f"{prefix}byteorder", order)
        for key, array in dict(storages).items():
            archive.writestr(f"{prefix}data/{key}", array.tobytes())
    return stream.getvalue()


def file_of(arrays, form):
    """The bytes of a file without metadata."""
    if form == "npz":
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        return stream.getvalue()
    if form == "safetensors":
        return safetensors(arrays)
    body = mapping({name: tensor(name, array.shape, storage=STORAGES[array.dtype.str]) for name, array in arrays.items()})
    return (zip_file if form == "zip" else stream_file)(body, arrays)


def load(content, tmp_path, name="file.bin"):
    """Under a name that says nothing: the content has to."""
    (tmp_path / name).write_bytes(content)
    return weights.load(tmp_path / name)


def fails(content, tmp_path, *words):
    """The message: one line that names the file."""
    with pytest.raises(WeightsError) as caught:
        load(content, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 500
    assert "file.bin" in message
    for word in words:
        assert word in message
    return message


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# There and back


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "net", [SMALL, ShuffleNetV1(0.25, groups=1, classes=3, order="authors"), build("v2", width=0.33, classes=2)]
)
def test_what_is_saved_is_loaded(net, suffix, tmp_path):
    made = weights.Checkpoint(
        net, initialise(net), tuple(f"Klasse {i}: ä" for i in range(net.classes)), Preprocess(80, 64, bgr=True)
    )
    weights.save(tmp_path / f"a{suffix}", made)
    loaded = weights.load(tmp_path / f"a{suffix}")
    same(loaded.params, made.params)
    assert (loaded.net, loaded.labels, loaded.preprocess, loaded.counters) == (net, made.labels, made.preprocess, {})
    assert all(array.flags.writeable and array.flags.c_contiguous and array.flags.owndata for array in loaded.params.values())
    assert [file.name for file in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_float16(suffix, tmp_path):
    made = weights.Checkpoint(SMALL, initialise(SMALL))
    weights.save(tmp_path / f"half{suffix}", made, np.float16)
    weights.save(tmp_path / f"full{suffix}", made)
    same(
        weights.load(tmp_path / f"half{suffix}").params,
        {name: array.astype("f2").astype("f4") for name, array in made.params.items()},
    )
    assert (tmp_path / f"half{suffix}").stat().st_size < 0.7 * (tmp_path / f"full{suffix}").stat().st_size
    made.params["fc.bias"][0] = 70000
    with pytest.raises(WeightsError, match=r"fc\.bias holds values that are not finite in float16"):
        weights.save(tmp_path / f"large{suffix}", made, np.float16)
    assert not (tmp_path / f"large{suffix}").exists()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_torchvision_names_come_back_as_they_were(form, dtype, tmp_path):
    made = entries(SMALL, dtype)
    checkpoint = load(file_of(made, form), tmp_path)
    assert checkpoint.net == SMALL
    wanted = {name: array if array.dtype == "i8" else array.astype("f4") for name, array in made.items()}
    same(weights.published(checkpoint), wanted)
    for suffix in (".npz", ".safetensors"):
        weights.save(tmp_path / f"again{suffix}", checkpoint)
        same(weights.published(weights.load(tmp_path / f"again{suffix}")), wanted)
    with np.load(tmp_path / "again.npz") as file:
        same({name: file[name] for name in file.files if name != "pyshuffle"}, wanted)


def test_layouts():
    made = entries(SMALL)
    params = weights._checkpoint(made, None).params
    for name, axes in (("conv1.0.weight", (2, 3, 1, 0)), ("conv5.0.weight", (2, 3, 1, 0)), ("fc.weight", (1, 0))):
        np.testing.assert_array_equal(params[name], made[name].transpose(axes))
    np.testing.assert_array_equal(params["stage2.1.branch2.3.weight"], made["stage2.1.branch2.3.weight"][:, 0].transpose(1, 2, 0))
    assert {name: array.shape for name, array in params.items()} == parameter_shapes(SMALL)


def test_bfloat16_in_safetensors(tmp_path):
    made = entries(SMALL)
    bits = made["fc.weight"].view("u4") >> 16
    made["fc.weight"] = bits.astype("u2").view("f2")
    loaded = load(safetensors(made, **{"fc.weight": {"dtype": "BF16"}}), tmp_path)
    np.testing.assert_array_equal(loaded.params["fc.weight"].T, (bits << 16).view("f4"))


# PyTorch's own files


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_tensors_of_every_kind(form):
    content = (DATA / f"zoo_{form}.pth").read_bytes()
    found, _ = containers.parse(content)
    same(found, {name: array.astype("f4") if name == "bfloat16" else array for name, array in zoo().items()})


def test_file_by_pytorch_with_the_authors_names():
    found, metadata = containers.parse((DATA / "v1_authors_stream.pth").read_bytes())
    same(found, {f"module.{name}": array for name, array in authors_v1(entries(MAKE["V1"], "f2")).items()})
    assert metadata is None
    loaded = weights.load(DATA / "v1_authors_stream.pth")
    assert loaded.net == MAKE["V1"]
    assert loaded.preprocess == AUTHORS
    assert len(found) == 295
    assert len(loaded.counters) == 49


def test_file_by_pytorch_with_torchvisions_names():
    loaded = weights.load(DATA / "v2_torchvision_zip.pth")
    assert loaded.net == MAKE["V2"]
    assert loaded.preprocess == TORCHVISION
    made = entries(MAKE["V2"], "f2")
    assert len(made) == 338
    same(weights.published(loaded), {name: array if array.dtype == "i8" else array.astype("f4") for name, array in made.items()})


@pytest.mark.parametrize(("width", "resize"), [(0.5, 256), (1.0, 256), (1.5, 232), (2.0, 232)])
def test_images_are_prepared_as_for_torchvisions_accuracy(width, resize, tmp_path):
    net = ShuffleNetV2(width, classes=2, wiring="torchvision")
    made = {name: np.zeros(shape, np.float32) for name, shape in weights._disk_shapes(net).items()}
    np.savez(tmp_path / "bare.npz", **made)
    assert weights.load(tmp_path / "bare.npz").preprocess == dataclasses.replace(TORCHVISION, resize=resize)


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("form", ["zip", "stream"])
def test_byte_order(form, little, tmp_path):
    made = {name: array.astype(array.dtype.newbyteorder("<" if little else ">")) for name, array in entries(SMALL).items()}
    body = mapping({name: tensor(name, array.shape, storage=STORAGES[array.dtype.str]) for name, array in made.items()})
    content = stream_file(body, made, little) if form == "stream" else zip_file(body, made, b"little" if little else b"big")
    same(weights.published(load(content, tmp_path)), entries(SMALL))


@pytest.mark.parametrize("wrappers", [("state_dict",), ("model",), ("model", "state_dict")])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefix(wrappers, prefix, tmp_path):
    made = entries(SMALL)
    body = mapping({prefix + name: tensor(name, a.shape, storage=STORAGES[a.dtype.str]) for name, a in made.items()})
    for wrapper in reversed(wrappers):
        body = mapping({wrapper: body, "epoch": number(3)})
    same(weights.published(load(zip_file(body, made, order=b"", prefix=""), tmp_path)), made)


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [((3, 2), (1, 3), 2), ((2, 2), (6, 2), 1), ((2, 3), (0, 1), 4), ((), (), 9), ((0, 7), (7, 1), 0), ((1,), (99,), 9)],
)
def test_views(shape, stride, offset):
    base = np.arange(10, dtype="f4")
    found, _ = containers.parse(stream_file(mapping({"a": tensor("0", shape, offset, stride)}), {"0": base}))
    wanted = np.empty(shape, "f4")
    for index in np.ndindex(*shape):
        wanted[index] = base[offset + sum(i * s for i, s in zip(index, stride, strict=True))]
    same(found, {"a": wanted})


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((11,), (1,), 0),
        ((10,), (1,), 1),
        ((2, 2), (9, 1), 0),
        ((2,), (1 << 62,), 0),
        ((1 << 62,), (0,), 0),
        ((1 << 40, 1 << 40), (0, 0), 0),
        ((5, 5), (0, 0), 0),
        ((), (), 10),
        ((3,), (1,), -1),
        ((3,), (-1,), 5),
        ((-3,), (1,), 5),
        ((3, 1), (1,), 0),
    ],
)
@pytest.mark.parametrize("form", ["zip", "stream"])
def test_a_view_that_leaves_its_storage(form, shape, stride, offset, tmp_path):
    write = zip_file if form == "zip" else stream_file
    message = fails(write(mapping({"a": tensor("0", shape, offset, stride)}), {"0": np.arange(10, dtype="f4")}), tmp_path)
    assert any(words in message for words in ("reaches beyond its storage", "is no view of a storage", "zip() argument"))


# Names: which network it is


@pytest.mark.parametrize("arch", ARCHS)
def test_every_network_is_recognised(arch):
    for net in ARCHS[arch].variants():
        shapes = {name: MAKE["published_shape"](shape) for name, shape in parameter_shapes(net).items()}
        found = weights._infer({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
        assert parameter_shapes(found) == parameter_shapes(net)
        assert found == net


def authors_logits_v1(made, image, groups):
    """The authors' V1: the shuffle comes after the depthwise convolution and its BN."""
    layers = Layers(made)
    x = pool.max_reference(relu(layers.bn(layers.conv(image, "first_conv.0", stride=2), "first_conv.1")))
    for i in range(16):
        name, stride = f"features.{i}", 2 if i in (0, 4, 12) else 1
        y = relu(layers.bn(layers.conv(x, f"{name}.branch_main_1.0", groups=1 if i == 0 else groups), f"{name}.branch_main_1.1"))
        y = layers.bn(layers.depthwise(y, f"{name}.branch_main_1.3", stride), f"{name}.branch_main_1.4")
        if groups > 1:
            n, h, w, c = y.shape
            y = y.transpose(0, 3, 1, 2).reshape(n, c // groups, groups, h, w)
            y = y.transpose(0, 2, 1, 3, 4).reshape(n, c, h, w).transpose(0, 2, 3, 1)
        y = layers.bn(layers.conv(y, f"{name}.branch_main_2.0", groups=groups), f"{name}.branch_main_2.1")
        x = relu(x + y) if stride == 1 else np.concatenate((pool.average_reference(x), relu(y)), axis=-1)
    return linear.forward_reference(pool.mean_reference(x), layers.weights["classifier.0.weight"].T)


def authors_logits_v2(made, image):
    """The authors' V2: even channels pass a unit, odd ones go through it; no shuffle elsewhere."""
    layers = Layers(made)
    x = pool.max_reference(relu(layers.bn(layers.conv(image, "first_conv.0", stride=2), "first_conv.1")))
    for i in range(16):
        name, stride = f"features.{i}", 2 if i in (0, 4, 12) else 1
        left, y = (x, x) if stride == 2 else (x[..., ::2], x[..., 1::2])
        y = relu(layers.bn(layers.conv(y, f"{name}.branch_main.0"), f"{name}.branch_main.1"))
        y = layers.bn(layers.depthwise(y, f"{name}.branch_main.3", stride), f"{name}.branch_main.4")
        y = relu(layers.bn(layers.conv(y, f"{name}.branch_main.5"), f"{name}.branch_main.6"))
        if stride == 2:
            left = layers.bn(layers.depthwise(left, f"{name}.branch_proj.0", stride), f"{name}.branch_proj.1")
            left = relu(layers.bn(layers.conv(left, f"{name}.branch_proj.2"), f"{name}.branch_proj.3"))
        x = np.concatenate((left, y), axis=-1)
    x = relu(layers.bn(layers.conv(x, "conv_last.0"), "conv_last.1"))
    return linear.forward_reference(pool.mean_reference(x), layers.weights["classifier.0.weight"].T)


class Layers:
    """Layers of a network by the names and shapes of its file, in float64."""

    def __init__(self, made):
        self.weights = {name: array.astype("f8") for name, array in made.items()}

    def conv(self, x, name, stride=1, groups=1):
        return conv.forward_reference(x, self.weights[f"{name}.weight"].transpose(2, 3, 1, 0), stride, groups)

    def depthwise(self, x, name, stride):
        return depthwise.forward_reference(x, self.weights[f"{name}.weight"][:, 0].transpose(1, 2, 0), stride)

    def bn(self, x, name):
        return batchnorm.forward_reference(
            x, *(self.weights[f"{name}.{entry}"] for entry in ("weight", "bias", "running_mean", "running_var"))
        )


def relu(x):
    return np.maximum(x, 0)


def logits(checkpoint, image):
    return checkpoint.net(Reference({name: array.astype("f8") for name, array in checkpoint.params.items()}), image)


@pytest.mark.parametrize(
    "net",
    [
        *(ShuffleNetV1(width, groups, 5, "authors", bias=False) for width, groups in ((0.25, 1), (0.5, 3), (0.5, 8), (1.0, 3))),
        *(ShuffleNetV2(width, 5, order="authors") for width in (0.5, 1.0)),
    ],
    ids=str,
)
def test_the_authors_networks_answer_as_in_the_authors_code(net, tmp_path):
    image = np.random.default_rng(7).standard_normal((1, 32, 32, 3))
    if net.arch == "v1":
        made = authors_v1(entries(net))
        wanted = authors_logits_v1(made, image, net.groups)
    else:
        made = authors_v2(entries(net))
        wanted = authors_logits_v2(made, image)
    loaded = load(file_of(made, "npz"), tmp_path)
    assert loaded.net == net
    assert loaded.preprocess == AUTHORS
    scale = np.abs(wanted).max()
    assert scale > 0.1
    np.testing.assert_allclose(logits(loaded, image), wanted, rtol=0, atol=1e-10 * scale)
    weights.save(tmp_path / "ours.safetensors", loaded)  # under our names, and not to be converted again
    np.testing.assert_array_equal(logits(weights.load(tmp_path / "ours.safetensors"), image), logits(loaded, image))
    if net.arch == "v2" or net.groups > 1:
        other = build(**describe(net) | {"order": "paper"})
        assert np.abs(other(Reference(loaded.params), image) - wanted).max() > 1e-3 * scale


def test_one_parameter_by_two_names(tmp_path):
    made = entries(SMALL)
    fails(file_of(made | {"module.fc.bias": made["fc.bias"]}, "npz"), tmp_path, "two entries")
    fails(file_of(made | {"first_conv.0.weight": made["conv1.0.weight"]}, "npz"), tmp_path, "two entries")


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stage3.2.branch2.4.bias": None}, ("stage3.2.branch2.4.bias is missing",)),
        ({"stage3.2.branch2.4.blas": np.zeros(3, "f4")}, ("'stage3.2.branch2.4.blas' is none of its parameters",)),
        ({"stage9.num_batches_tracked": np.array(3)}, ("'stage9.num_batches_tracked' is none",)),
        (
            {"conv5.0.weight": np.zeros((512, 97, 1, 1), "f4")},
            ("conv5.0.weight has the shape (512, 97, 1, 1) and not (512, 96, 1, 1)",),
        ),
        ({"conv5.0.weight": np.zeros((1, 1, 96, 512), "f4")}, ("(1, 1, 96, 512) and not (512, 96, 1, 1)",)),
        ({"fc.weight": np.zeros((2,), "f4")}, ("fc.weight", "(2, 512)")),
        ({"conv1.1.bias": np.full(24, np.nan, "f4")}, ("conv1.1.bias", "not finite")),
        ({"conv1.1.bias": np.full(24, -np.inf, "f2")}, ("conv1.1.bias", "not finite")),
        ({"conv1.1.bias": np.full(24, 1e300, "f8")}, ("conv1.1.bias", "not finite")),
        ({"conv1.1.running_var": np.full(24, -1e-3, "f4")}, ("conv1.1.running_var", "negative")),
        ({"conv1.1.bias": np.full(24, 3)}, ("conv1.1.bias holds int64",)),
        ({"conv1.1.bias": np.full(24, b"x")}, ("conv1.1.bias holds |S1",)),
        ({"conv1.1.num_batches_tracked": np.array(np.nan)}, ("conv1.1.num_batches_tracked holds float64",)),
    ],
)
def test_what_does_not_fit(described, change, words, tmp_path):
    made = entries(SMALL) | change
    made = {name: array for name, array in made.items() if array is not None}
    if described:
        made["pyshuffle"] = note(net=describe(SMALL))
        words += (str(SMALL),) if "fit" in words else ()
    fails(file_of(made, "npz"), tmp_path, *words)


def test_the_state_of_a_run_is_told_from_weights(tmp_path):
    state = {"meta": np.zeros(3, "u1")} | {f"params/{name}": array for name, array in entries(SMALL).items()}
    fails(file_of(state, "npz"), tmp_path, "is the state of a run of training", "its weights are in weights.npz beside it")
    fails(file_of({"params/Dense_0/kernel": np.zeros((2, 3), "f4")}, "npz"), tmp_path, "does not fit")


def test_what_does_not_fit_is_not_saved(tmp_path):
    made = initialise(SMALL)
    for bad in ({"fc.bias": np.array([1, np.nan], "f4")}, {"fc.bias": np.zeros(3, "f4")}, {"more": np.zeros(3, "f4")}):
        with pytest.raises(WeightsError, match=r"fc\.bias|more"):
            weights.save(tmp_path / "a.npz", weights.Checkpoint(SMALL, made | bad))
    for labels, says in ((("a",), "a label for each of 2 classes"), (("a", "b" * weights.TEXT), "more than")):
        with pytest.raises(WeightsError, match=f"cannot write .*a.npz: it .*{says}"):
            weights.save(tmp_path / "a.npz", weights.Checkpoint(SMALL, made, labels))
    for name, dtype in (("a.pth", "f4"), ("a", "f4"), ("a.npz", "i1")):
        with pytest.raises(WeightsError, match=r"only \.npz and \.safetensors, in float16"):
            weights.save(tmp_path / name, weights.Checkpoint(SMALL, made), dtype)
    assert not list(tmp_path.iterdir())


def test_counters_may_be_missing(tmp_path):
    made = {name: array for name, array in entries(SMALL).items() if not name.endswith("tracked")}
    checkpoint = load(file_of(made, "stream"), tmp_path)
    assert not checkpoint.counters
    same(weights.published(checkpoint), made)


def note(**facts):
    return np.frombuffer(json.dumps({"labels": None, "preprocess": None} | facts).encode(), "u1")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (note(net={"arch": "v9"}), ("no network 'v9'", "v1")),
        (note(net={"arch": "v2", "depth": 3}), ("no setting 'depth'",)),
        (note(net={"arch": "v2", "width": 7}), ("no width 7",)),
        (note(net={"arch": "v2", "width": [7]}), ()),
        (note(net=3), ()),
        (note(), ()),
        (note(net=describe(SMALL), labels=["one"]), ("a label for each of 2 classes",)),
        (note(net=describe(SMALL), labels=[1, 2]), ("label",)),
        (note(net=describe(SMALL), labels="ab"), ()),
        (note(net=describe(SMALL), preprocess={"size": 3}), ()),
        (note(net=describe(SMALL), preprocess={"resize": 3, "crop": 4}), ("crop=4",)),
        (np.frombuffer(b"{", "u1"), ()),
        (np.frombuffer(b"\xff", "u1"), ()),
        (np.frombuffer(b"[" * 100_000, "u1"), ()),
    ],
)
def test_damaged_metadata(metadata, words, tmp_path):
    fails(file_of(entries(SMALL) | {"pyshuffle": metadata}, "npz"), tmp_path, *words)


# Files that are not what they say


@pytest.mark.parametrize("form", [*FORMATS, "ours"])
def test_truncated_anywhere(form, tmp_path):
    content = ours(tmp_path) if form == "ours" else file_of(entries(SMALL), form)
    cuts = {*range(0, 24), *range(24, len(content), len(content) // 40), *range(len(content) - 3, len(content))}
    for cut in sorted(cuts):
        fails(content[:cut], tmp_path)


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_truncated_between_any_two_parts(form, tmp_path):
    content = (DATA / f"zoo_{form}.pth").read_bytes()
    for cut in range(0, len(content), 7):
        with pytest.raises(WeightsError):
            load(content[:cut], tmp_path)


@pytest.mark.parametrize("form", [*FORMATS, "ours"])
def test_damaged_anywhere(form, tmp_path):
    """Whatever single bytes are changed to, the file is loaded, or refused in one line."""
    content = ours(tmp_path) if form == "ours" else file_of(entries(SMALL), form)
    rng = np.random.default_rng(3)
    for place in rng.integers(0, 3000, 40) if form != "zip" else (*rng.integers(0, 3000, 20), *rng.integers(-3000, 0, 20)):
        damaged = bytearray(content)
        damaged[place] = rng.integers(256)
        try:
            load(damaged, tmp_path)
        except WeightsError as error:
            assert "\n" not in str(error)  # noqa: PT017


def ours(tmp_path):
    weights.save(tmp_path / "ours.npz", weights.Checkpoint(SMALL, initialise(SMALL)))
    return (tmp_path / "ours.npz").read_bytes()


@pytest.mark.parametrize("content", [b"", b"P", b"PK", b"GIF89a", b"\x00" * 100, b"hello\nworld" * 9, pickle.dumps([1], 0)])
def test_other_files(content, tmp_path):
    message = fails(content, tmp_path)
    assert "is damaged" in message if content == b"PK" else all(kind in message for kind in (".npz", ".safetensors", ".pth"))


def test_a_pickle_that_pytorch_did_not_write(tmp_path):
    fails(pickle.dumps({"fc.weight": [1.0]}, 2), tmp_path, "not one of PyTorch's")


def test_files_that_are_none(tmp_path):
    with pytest.raises(WeightsError, match=r"^no such file: .*missing\.npz$"):
        weights.load(tmp_path / "missing.npz")
    with pytest.raises(WeightsError, match=r"^not a file: "):
        weights.load(tmp_path)
    with pytest.raises(WeightsError, match=r"^not a file: "):
        weights.load("/dev/zero")
    with pytest.raises(WeightsError, match=r"^no such file: a b$"):
        weights.load("a\nb")


def test_a_huge_file(tmp_path, monkeypatch):
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(weights.LIMIT + 1)
    with pytest.raises(WeightsError, match="more than"):
        weights.load(tmp_path / "huge")
    monkeypatch.setattr(weights, "LIMIT", 1 << 20)
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.zeros(1 << 18, "f4"))
    assert len(stream.getvalue()) < 1 << 12
    fails(stream.getvalue(), tmp_path, "unpack")


def test_bombs_in_a_zip_container(tmp_path):
    body = mapping({"a": tensor("0", (1 << 20,))})
    fails(zip_file(body, {"0": np.zeros(1 << 20, "f4")}, compression=zipfile.ZIP_DEFLATED), tmp_path, "larger than the file")
    content = zip_file(mapping({"a": tensor("0", (8,))}), {"0": np.zeros(8, "f4")})
    at = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1) + 1)
    sizes = struct.pack("<II", 1 << 30, 1 << 30)
    fails(content[: at + 20] + sizes + content[at + 28 :], tmp_path, "larger than the file")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F8"},
        {"dtype": 3},
        {"dtype": ["F32"]},
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": [2.0]},
        {"shape": 2},
        {"data_offsets": [0, 8]},
        {"data_offsets": [-8, 0]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0]},
        {"data_offsets": "ab"},
        {"data_offsets": [1 << 70, (1 << 70) + 8]},
    ],
)
def test_damaged_safetensors(change, tmp_path):
    fails(safetensors(entries(SMALL), **{"fc.bias": change}), tmp_path)


def test_safetensors_of_another_length(tmp_path):
    content = safetensors(entries(SMALL))
    fails(content + b"more", tmp_path, "4 bytes")
    fails(content[:-4], tmp_path, "fc.", "size of the file")
    fails(struct.pack("<Q", 1 << 63) + content[8:], tmp_path, "header")
    fails(struct.pack("<Q", 9) + b"{" * 9, tmp_path, "damaged")


def test_safetensors_whose_entries_overlap(tmp_path):
    made = entries(SMALL)
    first, second = list(made)[:2]
    content = safetensors(made, **{second: {"data_offsets": [0, made[second].nbytes]}})
    fails(content, tmp_path, "neighbours")
    assert first != second


# Pickles that do more than hold tensors


class Evil:
    """Pickled, it is a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


CALLS = {
    "system": lambda path: (os.system, (f"mkdir {path}",)),
    "eval": lambda path: (eval, (f"__import__('os').mkdir({str(path)!r})",)),
    "exec": lambda path: (exec, (f"import os; os.mkdir({str(path)!r})",)),
    "mkdir": lambda path: (os.mkdir, (str(path),)),
    "test_weights": lambda path: (witness, (path,)),
}


def witness(path):
    path.mkdir()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_run(name, protocol, tmp_path):
    path = tmp_path / "witness"
    evil = pickle.dumps({"fc.weight": Evil(*CALLS[name](path))}, protocol)
    pickle.loads(evil)
    path.rmdir()  # it is there: pickle does run what is refused below
    body = evil.removesuffix(b".")
    for content in (zip_file(body), stream_file(body), stream_file(b"").replace(b"M\xe9\x03.", evil), evil):
        message = fails(content, tmp_path)
        assert content[:1] not in b"P\x80" or (name in message and "nothing of it was run" in message)
        assert not path.exists()


def test_nothing_is_run_from_an_array_of_objects(tmp_path):
    path = tmp_path / "witness"
    stream = io.BytesIO()
    np.savez(stream, **(entries(SMALL) | {"fc.bias": np.array([Evil(*CALLS["mkdir"](path)), 0])}))
    fails(stream.getvalue(), tmp_path, "fc.bias holds objects", "nothing of them was run")
    assert not path.exists()


@pytest.mark.parametrize(
    "dotted",
    [
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "Counter"),
        ("numpy", "load"),
        ("torch.nn.modules.conv", "Conv2d"),
        ("", ""),
    ],
)
def test_names_that_are_refused(dotted, tmp_path):
    parts = text(dotted[0]) + text(dotted[1])
    fails(zip_file(parts + b"\x93"), tmp_path, ".".join(dotted).strip("."))
    fails(stream_file(known(*dotted)), tmp_path, ".".join(dotted).strip("."))
    fails(stream_file(b"(" + known(*dotted).replace(b"c", b"i", 1)), tmp_path, "an instruction that no file of weights needs")


@pytest.mark.parametrize(
    "body",
    [
        known("torch._utils", "_rebuild_tensor_v2") + b"N" + mapping({"__defaults__": b")"}) + b"\x86b",
        known("torch._utils", "_rebuild_tensor_v2") + mapping({"polluted": b")"}) + b"b",
        known("collections", "OrderedDict") + mapping({"polluted": b")"}) + b"b",
        known("collections", "OrderedDict") + text("polluted") + b"Ns",
        b"}" + b")" + b"\x85" * 300_000 + b"Ns",  # the hash of a deep tuple overflows the stack of C
        b"}" + b")" + b"2\x86" * 100 + b"Ns",  # that of a wide one takes 2^100 steps
        b"]" + b"2\x86" * 100 + b"K\x01R",  # so does its text, in the message that 1 is no tuple of arguments
        b"Nr\xff\xff\xff\xff",  # pickle's C code would allocate 64 GB for this memo
        b"\x8e" + b"\xff" * 7 + b"\x7f",  # bytes of that length
        b"\x96" + b"\xff" * 7 + b"\x7f",
        b"(" * 100_000,
        b"]" * 100_000 + b"a" * 99_999,
        mapping({"a": mapping({})}),
        mapping({"a\nb" * 1000: number(3)}),
        b"",
        b"0000",
        b"\x82\x01",
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("form", ["zip", "stream"])
def test_nonsense_in_a_pickle(form, body, tmp_path):
    admitted = dict(torchfile.ADMITTED)
    defaults = torchfile._tensor.__defaults__
    fails((zip_file if form == "zip" else stream_file)(body), tmp_path)
    assert admitted == torchfile.ADMITTED
    assert torchfile._tensor.__defaults__ == defaults
    assert not vars(torchfile._tensor)


FLOATS = known("torch", "FloatStorage")
CPU = text("cpu") + number(1)
REBUILD = known("torch._utils", "_rebuild_tensor_v2")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"}(K\x01K\x02u", "name is no text"),
        (mapping({"a": number(3)}), "'a' that is no tensor"),
        (
            mapping({"a": known("torch._utils", "_rebuild_parameter") + sequence(text("b"), b"\x88", b"}") + b"R"}),
            "'a' that is no tensor",
        ),
        (b"NQ", "storage without a kind"),
        (sequence(text("storage"), text("O"), text("0"), CPU) + b"Q", "storage of an unknown kind"),
        (sequence(text("storage"), FLOATS, b"]", CPU) + b"Q", "storage of an unknown kind"),
        (
            sequence(text("storage"), FLOATS, text("0"), CPU, sequence(text("1"), number(2), number(3))) + b"Q",
            "storage of an unknown kind",
        ),
        (REBUILD + sequence(text("0"), number(0), b")", b")") + b"R", "no view of a storage"),
        (REBUILD + sequence(b"N", number(0), sequence(text("a")), b")") + b"R", "no view of a storage"),
        (b"]", "holds a list"),
        (b"N", "holds a NoneType"),
    ],
)
@pytest.mark.parametrize("form", ["zip", "stream"])
def test_tensors_that_are_none(form, body, words, tmp_path):
    fails((zip_file if form == "zip" else stream_file)(body), tmp_path, words)


@pytest.mark.parametrize("count", [-1, -(1 << 63), 3, 1 << 61, (1 << 63) - 1])
def test_storages_of_a_stream_that_are_not_there(count, tmp_path):
    content = stream_file(mapping({"a": tensor("0", (2,))}), {"0": np.zeros(2, "f4")})
    fails(content[:-16] + struct.pack("<q", count) + content[-8:], tmp_path, "truncated")
    fails(zip_file(mapping({"a": tensor("0", (2,))})), tmp_path, "data/0")
    fails(stream_file(mapping({"a": tensor("0", (2,))})), tmp_path)


# Writing


def bytes_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(failing, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    if failing == "write":
        with pytest.raises(WeightsError, match=r"^cannot write .*a\.npz: No space left on device$"):
            weights.write_atomically(path, lambda file: (file.write(b"new"), full()))
    else:
        monkeypatch.setattr(os, failing, full)
        with pytest.raises(WeightsError, match=r"^cannot write .*a\.npz: No space left on device$"):
            weights.save(path, weights.Checkpoint(SMALL, initialise(SMALL)))
    assert bytes_of(tmp_path) == {"a.npz": b"old"}


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    def interrupted(file):
        file.write(b"half of the n")
        raise KeyboardInterrupt

    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        weights.write_atomically(tmp_path / "a", interrupted)
    assert bytes_of(tmp_path) == {"a": b"old"}


def test_where_nothing_can_be_written(tmp_path):
    for path in (tmp_path / "missing" / "a.npz", tmp_path, tmp_path / ("long" * 100)):
        with pytest.raises(WeightsError, match=r"^cannot write"):
            weights.write_atomically(path, lambda file: file.write(b"new"))
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    weights.write_atomically(tmp_path / "link", lambda file: file.write(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert bytes_of(tmp_path / "there") == {"file": b"new"}
