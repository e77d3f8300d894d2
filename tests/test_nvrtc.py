"""The GPU's machine code of the package's kernels, compiled with no GPU: does every instance fit, on every GPU?"""

import functools

import nvrtc
import pytest
from cuda_on_cpu import examples

from sparsekit.kernels.gpu_instances import INSTANCES, OPTIONS, SOURCE

REGISTERS = 65536  # of a multiprocessor: a block has to fit in one
STATIC_SHARED = 48 * 1024

# V100, T4, A100, H100.
ARCHITECTURES = (70, 75, 80, 90)


def parameters(architectures=ARCHITECTURES, disassembler: bool = False) -> list:
    """Parameters, one an architecture; those for which something is missing say what to install."""
    found = []
    for architecture in architectures:
        missing = nvrtc.missing_wheel(architecture) or (nvrtc.missing_disassembler() if disassembler else None)
        mark = pytest.mark.skipif(missing is not None, reason=missing or "")
        found.append(pytest.param(architecture, id=f"sm_{architecture}", marks=[mark]))
    return found


@functools.cache
def compiled_examples(architecture: int) -> nvrtc.Compiled:
    names = ["crowded", "turn_vectors", "total", "transpose<float, 16>", "fold<32>", "row_sums<2>"]
    return nvrtc.compile_cuda(examples.SOURCE, architecture, names, ["-std=c++17"])


def misfits(resources: nvrtc.Resources, threads: int) -> list[str]:
    """What keeps a kernel from running well, or at all."""
    checks = {
        f"spills {resources.spill_stores} bytes": resources.spill_stores + resources.spill_loads > 0,
        f"has {resources.stack_frame} bytes of local memory": resources.stack_frame > 0,
        f"{resources.registers} registers x {threads} threads": resources.registers * threads > REGISTERS,
        f"{resources.static_shared} bytes of static shared memory": resources.static_shared > STATIC_SHARED,
    }
    return [what for what, wrong in checks.items() if wrong]


def occurs(expected: str, found: set[str]) -> bool:
    """Whether an instruction is there, with other modifiers perhaps: LDS.128 is LDS.U.128 on sm_75."""
    name, *modifiers = expected.split(".")
    return any(name == n and set(modifiers) <= set(m) for n, *m in (mnemonic.split(".") for mnemonic in found))


# ----------------------------------------------------------------------------------------------------
# The package's kernels
# ----------------------------------------------------------------------------------------------------
def test_the_table_of_instances_has_each_once():
    names = [instance.name for instance in INSTANCES]
    assert len(names) == len(set(names)) > 0


def compile_instances(architecture: int) -> nvrtc.Compiled:
    names = [instance.name for instance in INSTANCES]
    return nvrtc.compile_cuda(SOURCE.read_text(encoding="utf-8"), architecture, names, OPTIONS)


def what_is_wrong(compiled: nvrtc.Compiled) -> dict[str, list[str]]:
    found = {instance.name: misfits(compiled.resources[instance.name], instance.threads) for instance in INSTANCES}
    return {name: what for name, what in found.items() if what}


def what_is_missing(compiled: nvrtc.Compiled) -> dict[str, list[str]]:
    """The vector loads that an instance should have, and does not."""
    sass = {name: nvrtc.mnemonics(text) for name, text in nvrtc.disassemble(compiled).items()}
    found = {i.name: [load for load in i.vector_loads if not occurs(load, sass[i.name])] for i in INSTANCES}
    return {name: loads for name, loads in found.items() if loads}


@pytest.mark.parametrize("architecture", parameters(ARCHITECTURES[:1]))
def test_every_instance_fits(architecture):
    assert what_is_wrong(compile_instances(architecture)) == {}


# One test of both, because the compiler takes seconds. Nothing disassembles sm_70.
@pytest.mark.parametrize("architecture", parameters(ARCHITECTURES[1:], disassembler=True))
def test_every_instance_fits_and_loads_vectors(architecture):
    compiled = compile_instances(architecture)
    assert what_is_wrong(compiled) == {}
    assert what_is_missing(compiled) == {}


# ----------------------------------------------------------------------------------------------------
# The binding: kernels of which the answers are known
# ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", parameters())
def test_a_kernel_that_must_spill_is_found(architecture):
    compiled = compiled_examples(architecture)
    crowded = compiled.resources["crowded"]
    assert crowded.registers == REGISTERS // 1024
    assert crowded.spill_stores > 0
    assert crowded.spill_loads > 0
    spills, local_memory = misfits(crowded, 1024)
    assert spills.startswith("spills")
    assert local_memory.endswith("local memory")
    assert misfits(compiled.resources["total"], 1024) == []


@pytest.mark.parametrize("architecture", parameters())
def test_resources(architecture):
    compiled = compiled_examples(architecture)
    assert compiled.resources["transpose<float, 16>"].static_shared == 16 * 17 * 4
    assert compiled.resources["turn_vectors"].static_shared == 64 * 16
    assert compiled.resources["total"].static_shared == 0
    assert compiled.cubin.startswith(b"\x7fELF")
    assert compiled.lowered_names["total"].startswith("_Z5total")
    registers = compiled.resources["total"].registers
    assert misfits(compiled.resources["total"], REGISTERS // registers + 1) == [
        f"{registers} registers x {REGISTERS // registers + 1} threads"
    ]


@pytest.mark.parametrize("architecture", parameters(ARCHITECTURES[1:], disassembler=True))
def test_instructions(architecture):
    sass = nvrtc.disassemble(compiled_examples(architecture))
    vectors, scalars = nvrtc.mnemonics(sass["turn_vectors"]), nvrtc.mnemonics(sass["transpose<float, 16>"])
    for instruction in ("LDG.E.128", "LDS.128", "STS.128", "STG.E.128"):
        assert occurs(instruction, vectors)
        assert not occurs(instruction, scalars)
    assert occurs("LDG.E", scalars)
    assert occurs("STL", nvrtc.mnemonics(sass["crowded"]))
    assert occurs("SHFL.BFLY", nvrtc.mnemonics(sass["row_sums<2>"]))
    assert occurs("LDGSTS", nvrtc.mnemonics(sass["fold<32>"])) == (architecture >= 80)


@pytest.mark.parametrize("architecture", parameters())
def test_what_does_not_compile_is_an_error_with_the_compilers_words(architecture):
    with pytest.raises(nvrtc.NvrtcError, match=r'kernel.cu\(1\).*identifier "nonsense" is undefined'):
        nvrtc.compile_cuda("__global__ void f(int* x) { *x = nonsense; }", architecture, ["f"])
    with pytest.raises(nvrtc.NvrtcError):
        nvrtc.compile_cuda("__global__ void f() {}", architecture, ["g"])


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(nvrtc, "_in_wheels", lambda relative: None)
    assert nvrtc.missing_wheel(70).endswith("`pip install nvidia-cuda-nvrtc-cu12`")
    assert nvrtc.missing_wheel(75).endswith("`pip install nvidia-cuda-nvrtc`")
    assert nvrtc.missing_disassembler().endswith("`pip install nvidia-cuda-nvdisasm`")
