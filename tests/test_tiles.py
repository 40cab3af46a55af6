"""The assembly of the tiles: their inner loops hold all sums in registers, on every processor, whichever one runs the tests."""

import ctypes
import re
from collections.abc import Iterator
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from pyshuffle.engine import library, machine, tiles, training_tiles
from pyshuffle.engine.emitter import Tile
from pyshuffle.engine.machine import Machine

# The processors -----------------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """A processor to compile for, and what its assembly looks like."""

    machine: Machine
    triple: str
    cpu: str
    multiply: str  # a multiply-add of whole vectors, or, where the machine has none, its multiplication
    maximum: str  # a maximum, or the comparison that begins one
    plus: str
    half: str = "none"  # a multiply-add of half a vector


X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
TARGETS = {
    "avx512": Target(
        Machine(16, 32), X86, "skylake-avx512", r"vfmadd\w+ps .*%zmm", r"vmaxps .*%zmm", r"vaddps .*%zmm", r"vfmadd\w+ps .*%ymm"
    ),
    "avx2": Target(Machine(8, 16), X86, "haswell", r"vfmadd\w+ps .*%ymm", r"vmaxps .*%ymm", r"vaddps .*%ymm"),
    "sse": Target(Machine(4, 16), X86, "x86-64", r"mulps .*%xmm", r"maxps .*%xmm", r"addps .*%xmm"),
    "neon": Target(Machine(4, 32), ARM, "cortex-a76", r"fmla v\d+\.4s", r"fcmgt v\d+\.4s", r"fadd v\d+\.4s"),
}
TARGETS["zen4"] = TARGETS["avx512"]._replace(machine=Machine(16, 32, pumped=True), cpu="znver4")
FRAMES = r"movq %rsp, %rbp$|(mov|add) x29, sp\b"  # the stack gets a second name


def assembly(target: Target, tile: Tile, **shape: int) -> str:
    """What LLVM makes of a tile: tabs as blanks, so that a pattern can name an instruction with its operands."""
    if target.cpu == "znver4" and llvm.llvm_version_info < (16, 0, 0):
        pytest.skip("this LLVM does not know a Zen 4: there it compiles for the processor before")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        processor = llvm.Target.from_triple(target.triple)
    except RuntimeError as error:
        pytest.skip(f"this llvmlite was built without {target.triple}: {error}")
    module = ir.Module()
    tile.define(module, target.machine, **shape)
    compiler = processor.create_target_machine(cpu=target.cpu, features="", opt=3)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    passes = llvm.create_pass_builder(compiler, library.optimisations())
    passes.getModulePassManager().run(parsed, passes)
    return compiler.emit_assembly(parsed).replace("\t", " ")


# The loops ----------------------------------------------------------------------------------------------------------------------


def innermost_loops(text: str) -> list[list[str]]:
    """Everything between a label and a jump back to it, in which there is no such loop."""
    lines = text.splitlines()
    labels = {line.partition(":")[0]: number for number, line in enumerate(lines) if re.match(r"\.?L\w+:", line)}
    loops = []
    for end, line in enumerate(lines):
        jump = re.match(r" (?:j\w+|b|b\.\w+|cbn?z|tbn?z) .*?(\.?L\w+)$", line)
        if jump and labels.get(jump[1], end) < end:
            loops.append((labels[jump[1]], end))
    innermost = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    return [lines[begin : end + 1] for begin, end in innermost]


def loops_with(text: str, instruction: str) -> Iterator[tuple[int, str]]:
    """The innermost loops in which there is an instruction: how many of them, and the loop."""
    for loop in innermost_loops(text):
        count = sum(bool(re.match(f" {instruction}", line)) for line in loop)
        if count:
            yield count, "\n".join(loop)


def check_loops(text: str, instruction: str, expected: int) -> None:
    """There are loops with so many of an instruction; none touches the stack."""
    found = list(loops_with(text, instruction))
    assert found, f"no loop has a {instruction}:\n{text}"
    stack = r"\(%rsp|\[sp\b" + (r"|\(%rbp|\[x29\b" if re.search(FRAMES, text, re.MULTILINE) else "")
    for count, loop in found:
        assert count == expected, f"{count} times {instruction}, and {expected} are needed, in\n{loop}"
        spilled = [line for line in loop.splitlines() if re.search(stack, line)]
        assert not spilled, f"the stack is touched by {spilled} in\n{loop}"


def named(target: str, *shape: int) -> object:
    return pytest.param(TARGETS[target], *shape, id="-".join((target, *map(str, shape))))


DENSE = [
    named(name, halves, pixels)
    for name, (machine_, *_) in TARGETS.items()
    for halves in machine_.widths
    for pixels in (machine_.heights[-(-halves // 2)], 1)
]
WINDOW = [named(name, stride, p) for name in TARGETS for stride in (1, 2) for p in (TARGETS[name].machine.run, 1)]
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@pytest.mark.parametrize(("target", "halves", "pixels"), DENSE)
def test_a_dense_tile_lies_in_registers(target, halves, pixels):
    """A multiply-add for each vector of each pixel, and no more."""
    text = assembly(target, tiles.dense, halves=halves, pixels=pixels)
    for part, instruction in ((2, target.multiply), (1, target.half)):
        if count := target.machine.parts(halves).count(part):
            check_loops(text, instruction, count * pixels)
        else:
            assert not list(loops_with(text, instruction))


@pytest.mark.parametrize(("target", "halves"), [named(name, h) for name in ("avx512", "zen4") for h in (3, 5, 7)])
def test_an_activation_is_loaded_once_for_all_parts_of_a_panel(target, halves):
    """Into all lanes of one register, no wider than the panel: the first half of a vector's is that of a half."""
    pixels = target.machine.heights[-(-halves // 2)]
    text = assembly(target, tiles.dense, halves=halves, pixels=pixels)
    (loop,) = [loop for _, loop in loops_with(text, target.half)]
    widest = "%zmm" if 2 in target.machine.parts(halves) else "%ymm"
    assert len(re.findall(rf"vbroadcastss .*{widest}", loop)) == loop.count("vbroadcastss") == pixels


@pytest.mark.parametrize(("target", "stride", "pixels"), WINDOW)
def test_a_window_tile_lies_in_registers(target, stride, pixels):
    check_loops(assembly(target, tiles.window, stride=stride, pixels=pixels), target.multiply, 9 * pixels)


@pytest.mark.parametrize("stride", [1, 2])
@every_target
def test_a_filter_gradient_tile_lies_in_registers(target, stride):
    check_loops(assembly(target, training_tiles.filter_gradient, stride=stride), target.multiply, 9)


@every_target
def test_a_gradient_with_stride_2_takes_nine_products_for_four_pixels(target):
    fused = target.multiply.startswith(("vfm", "fmla"))  # four of the nine are products alone
    check_loops(assembly(target, training_tiles.parities), target.multiply, 5 if fused else 9)


@every_target
def test_what_is_computed_while_it_is_read_spills_nothing(target):
    """One multiply-add for each vector that is normalised, three for each of a gradient."""
    for tile, each in ((training_tiles.normalise, 1), (training_tiles.differentiate, 3)):
        check_loops(assembly(target, tile), target.multiply, each)


@pytest.mark.parametrize(("target", "vectors"), [named(name, v) for name in TARGETS for v in TARGETS[name].machine.heights])
def test_sums_for_a_batch_normalisation_lie_in_registers(target, vectors):
    for tile, each in ((training_tiles.measure, 1), (training_tiles.covary, 2)):
        check_loops(assembly(target, tile, vectors=vectors), target.multiply, each * vectors)


@every_target
def test_the_gradient_of_a_maximum_takes_nine_sums(target):
    check_loops(assembly(target, training_tiles.maximum_gradient), target.plus, 9)


@every_target
def test_a_maximum_takes_six_comparisons(target):
    """Four for two columns of its window, two for them and the column that it has from the window before."""
    check_loops(assembly(target, tiles.maximum), target.maximum, 6)


@every_target
def test_an_average_is_a_sum(target):
    check_loops(assembly(target, tiles.average), target.plus, 1)


@pytest.mark.parametrize("target", [named(name) for name in TARGETS if name != "sse"])
def test_the_peak_is_nothing_but_multiply_adds(target):
    """So many that none waits for another. Without fused ones LLVM takes the multiplication out of the loop."""
    check_loops(assembly(target, tiles.peak), target.multiply, tiles.PEAK_SUMS)


@every_target
def test_a_tile_that_is_too_large_is_found(target):
    """As many sums as registers leave none for weights: what the tests above look for is then there to be seen."""
    pixels = target.machine.registers
    with pytest.raises(AssertionError, match="the stack is touched"):
        check_loops(assembly(target, tiles.window, stride=1, pixels=pixels), target.multiply, 9 * pixels)


def test_innermost_loops_of_a_text():
    """A loop in a loop, and a jump forward; of x86 and of ARM."""
    for jump in ("jne", "b.ne"):
        text = f".LBB0_1:\n one\n.LBB0_2:\n two\n {jump} .LBB0_2\n {jump} .LBB0_3\n {jump} .LBB0_1\n.LBB0_3:\n three"
        assert innermost_loops(text) == [[".LBB0_2:", " two", f" {jump} .LBB0_2"]]


# The machine --------------------------------------------------------------------------------------------------------------------

NAMED = [  # triple, features, machine
    (X86, "+sse2,+avx,+avx2,+fma,+avx512f,+avx512vl", Machine(16, 32)),
    (X86, "+avx512f", Machine(16, 32)),
    (X86, "+avx2,+fma,+avx", Machine(8, 16)),
    (X86, "+avx,+avx2,+fma,-avx512f", Machine(8, 16)),
    (X86, "+sse2", Machine(4, 16)),
    (X86, "+sse2,-avx", Machine(4, 16)),
    (X86, "", Machine(4, 16)),
    (ARM, "+neon", Machine(4, 32)),
    (ARM, "", Machine(4, 32)),
]


@pytest.mark.parametrize("host", ["", "+avx,+avx512f"], ids=["on an old computer", "on a new one"])
@pytest.mark.parametrize(("triple", "features", "expected"), NAMED)
def test_the_machine_is_the_one_that_is_asked_for(monkeypatch, triple, features, expected, host):
    """By numba's variables, whatever computer this is."""
    pretend(monkeypatch, triple, host)
    monkeypatch.setenv("NUMBA_CPU_NAME", "nocona")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", features)
    assert machine.machine() == expected
    assert machine.cpu() == ("nocona", features)


@pytest.mark.parametrize(("triple", "features", "expected"), NAMED)
def test_by_default_the_machine_is_this_computer(monkeypatch, triple, features, expected):
    pretend(monkeypatch, triple, features)
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)
    assert machine.machine() == expected
    assert machine.cpu() == (llvm.get_host_cpu_name(), features)


def test_a_computer_whose_name_is_not_known_has_its_features(monkeypatch):
    """LLVM calls it generic; where numba's variable says so, any processor is meant."""
    pretend(monkeypatch, X86, "+avx,+avx512f")
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "generic")
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)
    assert machine.machine() == Machine(16, 32)
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert machine.machine() == Machine(4, 16)
    assert machine.cpu() == ("generic", "")


@pytest.mark.parametrize(("name", "pumped"), [("znver4", True), ("znver5", False), ("skylake-avx512", False)])
def test_vectors_are_worked_on_in_halves_by_one_kind_of_processor(monkeypatch, name, pumped):
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    monkeypatch.delenv("NUMBA_CPU_FEATURES", raising=False)
    pretend(monkeypatch, X86, "+avx,+avx512f", name)
    assert machine.machine() == Machine(16, 32, pumped)
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx")
    assert machine.machine() == Machine(8, 16)
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx,+avx512f")
    monkeypatch.setenv("NUMBA_CPU_NAME", "skylake-avx512")
    assert machine.machine() == Machine(16, 32)


@pytest.mark.skipif(not machine.machine().halved, reason="needs a processor with AVX-512")
@pytest.mark.parametrize("pixels", [7, 1])
def test_a_panel_has_the_same_bits_in_whatever_parts_it_is_computed(pixels):
    whole, halves = (run_dense(name, 3, pixels) for name in ("avx512", "zen4"))
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(whole, halves)


def run_dense(name: str, halves: int, pixels: int) -> np.ndarray:
    """What such a tile computes on this processor of random numbers: a panel of two vectors for each pixel, of 30 inputs."""
    inputs, row = 30, 2 * 16
    values = np.random.default_rng(0).standard_normal((4, inputs * row)).astype(np.float32)
    bytes_of = {"offsets": 4 * np.arange(inputs), "columns": np.array([0, 64])}
    bytes_of |= {"source_pixels": 4 * inputs * np.arange(pixels), "target_pixels": 4 * row * np.arange(pixels)}
    bytes_of |= {"residual_pixels": bytes_of["target_pixels"], "residual_columns": bytes_of["columns"]}
    tables = {key: table.astype(np.uint32) for key, table in bytes_of.items()}
    arrays = {
        **dict(zip(("source", "weights", "bias", "residual"), values, strict=True)),
        "target": np.zeros((pixels, row), np.float32),
    }
    given = {key: array.ctypes.data for key, array in {**arrays, **tables}.items()}
    given |= {"first": 0, "last": pixels, "count": inputs, "low": -np.inf, "high": 1.0}
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = ir.Module()
    tile = tiles.dense.define(module, TARGETS[name].machine, halves=halves, pixels=pixels)
    cpu, features = machine.cpu()
    processor = llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=3, codemodel="jitdefault")
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), processor)
    engine.finalize_object()
    kinds = [ctypes.c_float if argument in ("low", "high") else ctypes.c_int64 for argument in tiles.dense.arguments]
    ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(tile.name))(
        *(given[argument] for argument in tiles.dense.arguments)
    )
    return arrays["target"][:, : 8 * halves]


def test_the_parts_of_a_panel():
    parts = [[1], [2], [2, 1], [2, 2], [2, 2, 1], [2, 2, 2], [2, 2, 2, 1], [2, 2, 2, 2]]
    assert [TARGETS["avx512"].machine.parts(halves) for halves in range(1, 9)] == parts
    parts[2] = [1, 1, 1]
    assert [TARGETS["zen4"].machine.parts(halves) for halves in range(1, 9)] == parts


def pretend(monkeypatch: pytest.MonkeyPatch, triple: str, features: str, name: str = "a-processor") -> None:
    """That this computer is another."""

    class Flags:
        def flatten(self) -> str:
            return features

    monkeypatch.setattr(llvm, "get_process_triple", lambda: triple)
    monkeypatch.setattr(llvm, "get_host_cpu_features", Flags)
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: name)


def test_panels_are_whole_vectors_wide_but_where_half_of_one_may_cost_half():
    widths = {name: list(target.machine.widths) for name, target in TARGETS.items()}
    every = [1, 2, 3, 4, 5, 6, 7, 8]
    assert widths == {"avx512": every, "zen4": every, "avx2": [2, 4], "sse": [2, 4], "neon": [2, 4, 6, 8]}


@every_target
def test_a_map_smaller_than_a_tile_is_computed_pixel_by_pixel(target):
    for vectors, tall in target.machine.heights.items():
        assert [target.machine.tall(vectors, pixels) for pixels in (1, tall - 1, tall, 999)] == [1, 1, tall, tall]
