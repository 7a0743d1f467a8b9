"""What is read off the text of a compiled program; the texts are short, and no compiler is needed."""

import pytest

from advjax.benchmarks.programs import arithmetic, hlo, traffic
from advjax.benchmarks.programs.facts import facts
from advjax.benchmarks.programs.walk import walk

STEP = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,4,4,3]{3,2,1,0})->f32[8,4,4,3]{3,2,1,0}}

%fused_computation (param_0: f32[8,4,4,3], param_1: f32[3,3,3,3]) -> f32[8,4,4,3] {
  %param_0 = f32[8,4,4,3]{0,3,2,1:T(8,128)} parameter(0)
  %param_1 = f32[3,3,3,3]{3,2,1,0:T(8,128)S(1)} parameter(1)
  %conv = f32[8,4,4,3]{0,3,2,1:T(8,128)} convolution(%param_0, %param_1), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_01io->b01f, operand_precision={highest,highest}, metadata={op_name="jit(step)/(a)"}
  ROOT %tanh = f32[8,4,4,3]{0,3,2,1:T(8,128)} tanh(%conv)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (arg: (s32[], f32[8,4,4,3], f32[3,3,3,3])) -> (s32[], f32[8,4,4,3], f32[3,3,3,3]) {
  %one = s32[] constant(1)
  %arg = (s32[], f32[8,4,4,3]{0,3,2,1:T(8,128)}, f32[3,3,3,3]{3,2,1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %next = s32[] add(%i, %one)
  %x = f32[8,4,4,3]{0,3,2,1:T(8,128)} get-tuple-element(%arg), index=1
  %k = f32[3,3,3,3]{3,2,1,0:T(8,128)S(1)} get-tuple-element(%arg), index=2
  %y = f32[8,4,4,3]{0,3,2,1:T(8,128)} fusion(%x, %k), kind=kOutput, calls=%fused_computation
  ROOT %out = (s32[], f32[8,4,4,3]{0,3,2,1:T(8,128)}, f32[3,3,3,3]{3,2,1,0:T(8,128)S(1)}) tuple(%next, %y, %k)
}

%condition (arg.1: (s32[], f32[8,4,4,3], f32[3,3,3,3])) -> pred[] {
  %limit = s32[] constant(20)
  %arg.1 = (s32[], f32[8,4,4,3]{0,3,2,1:T(8,128)}, f32[3,3,3,3]{3,2,1,0:T(8,128)S(1)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (images: f32[8,4,4,3], kernel: f32[3,3,3,3]) -> (f32[8,4,4,3], f32[]) {
  %zero = s32[] constant(0)
  %images = f32[8,4,4,3]{0,3,2,1:T(8,128)} parameter(0), metadata={op_name="images"}
  %kernel = f32[3,3,3,3]{3,2,1,0:T(8,128)} parameter(1)
  %start = s32[] copy(%zero)
  %fetch = (f32[3,3,3,3]{3,2,1,0:T(8,128)S(1)}, f32[3,3,3,3]{3,2,1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%kernel)
  %fetched = f32[3,3,3,3]{3,2,1,0:T(8,128)S(1)} copy-done(%fetch)
  %carry = (s32[], f32[8,4,4,3]{0,3,2,1:T(8,128)}, f32[3,3,3,3]{3,2,1,0:T(8,128)S(1)}) tuple(%start, %images, %fetched)
  %loop = (s32[], f32[8,4,4,3]{0,3,2,1:T(8,128)}, f32[3,3,3,3]{3,2,1,0:T(8,128)S(1)}) while(%carry), \
condition=%condition, body=%body
  %found = f32[8,4,4,3]{0,3,2,1:T(8,128)} get-tuple-element(%loop), index=1
  %float = f32[] constant(0)
  %total = f32[] reduce(%found, %float), dimensions={0,1,2,3}, to_apply=%add
  %mean = f32[] all-reduce(%total), channel_id=1, replica_groups=[1,16]<=[16], to_apply=%add
  ROOT %results = (f32[8,4,4,3]{0,3,2,1:T(8,128)}, f32[]) tuple(%found, %mean)
}
"""
BATCH = 8 * 4 * 4 * 3 * 4
KERNEL = 3 * 3 * 3 * 3 * 4
CONVOLUTION = 2 * 8 * 3 * 3 * (2 * 3 + 2 * 2) ** 2
"""Of the four outputs along a side, two see all three entries of the kernel and two see two."""


def program(*lines, before=""):
    """A program whose entry consists of the lines."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule test\n\n{before}\nENTRY %main (x: f32[]) -> f32[] {{\n{body}\n}}\n"


def entry(*lines, before=""):
    module = hlo.parse(program(*lines, before=before))
    return module, module.computations["main"]


def test_shapes_have_sizes_and_memories():
    found = hlo.shapes(
        "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, pred[5]{0}, f32[]{:S(2)}, s4[3]{0:S(5)}, f8e4m3fn[7], token[])"
    )
    assert [shape.dims for shape in found] == [(2, 3), (5,), (), (3,), (7,), ()]
    assert [shape.nbytes for shape in found] == [12, 5, 4, 2, 7, 0]
    assert [shape.is_on_chip for shape in found] == [True, False, True, False, False, False]


def test_instructions_have_operands_attributes_and_called_computations():
    _, found = entry(
        '%a = f32[2]{0} parameter(0), metadata={op_name="body=%nothing (unclosed"}',
        "%b = (f32[2]{0:T(2,128)}, u8[0]{0}) custom-call(%a, /*index=1*/%a), window={size=3x3}, "
        'custom_call_target="__cudnn$convForward", backend_config={"calls":["x"]}',
        "ROOT %c = f32[2]{0} conditional(%a, %a, %a), branch_computations={%one, %two}",
    )
    assert list(found) == ["a", "b", "c"]
    assert found["b"].operands == ("a", "a")
    assert found["b"].target == "__cudnn$convForward"
    assert found["b"].attribute("window") == "size=3x3"
    assert found["b"].attribute("dim_labels") == ""
    assert found["b"].nbytes == 8
    assert found["a"].called == found["b"].called == ()
    assert found["c"].called == (("branch_computations", "one"), ("branch_computations", "two"))
    assert [instruction.is_root for instruction in found.values()] == [False, False, True]


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("module @jit_f {\n}\n")


def test_all_facts_about_a_step():
    found = facts(STEP)
    (loop,) = found.loops
    assert (loop.trips, loop.depth, loop.kernels, loop.conditionals, loop.loops_inside) == (20, 1, 2, 0, 0)
    # The counter, and the kernel that reads and writes a batch; the weights are on the chip.
    assert loop.nbytes == 12 + 2 * BATCH
    assert found.step == loop
    assert found.flop == 20 * loop.flop == 20 * CONVOLUTION
    ((made, count),) = found.products
    assert (made.kind, made.types, made.precision, count) == ("convolution", "f32 x f32 -> f32", "highest", 1)
    assert made.flop == found.flop
    # The copy of the counter, the reduction and the all-reduce; the transfer of the weights is no kernel.
    assert found.kernels == 20 * 2 + 3
    assert found.nbytes == 20 * loop.nbytes + 8 + KERNEL + (BATCH + 8) + 8
    assert [(one.kind, one.nbytes) for one in found.collectives] == [("all-reduce", 4)]
    assert [(one.name, one.nbytes) for one in found.copies] == [("start", 4)]
    assert (found.conditionals, found.host_calls, found.largest_constant) == (0, (), 4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("%limit = s32[] constant(20)", "%limit = s32[] get-tuple-element(%arg.1), index=0"),
        ("%one = s32[] constant(1)", "%one = s32[] constant(2)"),
        ("%start = s32[] copy(%zero)", "%start = s32[] parameter(2)"),
        ("direction=LT", "direction=NE"),
    ],
)
def test_only_a_loop_over_a_constant_range_has_a_known_number_of_turns(old, new):
    assert old in STEP
    found = facts(STEP.replace(old, new))
    assert found.step.trips is None
    assert found.flop == CONVOLUTION


def test_the_compiler_may_note_the_number_of_turns():
    noted = 'body=%body, backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}}'
    assert facts(STEP.replace("body=%body", noted)).step.trips == 7


def test_a_range_may_begin_elsewhere():
    assert facts(STEP.replace("%zero = s32[] constant(0)", "%zero = s32[] constant(5)")).step.trips == 15


def test_work_in_functions_of_reductions_and_in_fusions_is_not_counted():
    kinds = {found.instruction.name: found for found in walk(hlo.parse(STEP))}
    assert kinds["sum"].is_applied and not kinds["sum"].is_work
    assert kinds["tanh"].is_fused and not kinds["tanh"].is_work
    assert kinds["fetch"].is_work and not kinds["fetch"].is_kernel
    assert not kinds["fetched"].is_work
    assert "less" not in kinds


@pytest.mark.parametrize(
    ("image", "kernel", "out", "labels", "window", "expected"),
    [
        # 1x1 kernels meet every pixel; a stride skips pixels, not products.
        ((2, 4, 4, 3), (1, 1, 3, 5), (2, 4, 4, 5), "b01f_01io->b01f", "size=1x1", 2 * (2 * 16 * 5) * 3),
        ((2, 4, 4, 3), (1, 1, 3, 5), (2, 2, 2, 5), "b01f_01io->b01f", "size=1x1 stride=2x2", 2 * (2 * 4 * 5) * 3),
        # Three entries over five pixels with padding: 2 + 3 + 3 + 3 + 2 of 15.
        ((1, 5, 1), (3, 1, 1), (1, 5, 1), "b0f_0io->b0f", "size=3 pad=1_1", 2 * 13),
        # The gradient of a convolution with stride 2: between the pixels are zeros.
        ((1, 3, 1), (3, 1, 1), (1, 5, 1), "b0f_0io->b0f", "size=3 pad=1_1 lhs_dilate=2", 2 * 7),
        # The gradient with respect to the kernel: an image as large as the kernel of it.
        ((2, 8, 8, 3), (8, 8, 2, 5), (3, 3, 3, 5), "f01b_01io->b01f", "size=8x8 pad=1_1x1_1", 2 * 15 * 2 * 22**2),
        # A product of matrices, as it is written for TPUs.
        ((7, 3), (3, 5), (7, 5), "bf_io->bf", "", 2 * 7 * 5 * 3),
    ],
)
def test_flop_of_convolutions(image, kernel, out, labels, window, expected):
    shapes = [hlo.Shape("f32", dims, "") for dims in (image, kernel, out)]
    assert arithmetic.convolution_flop(*shapes, labels, window) == expected


def made(*lines):
    """What the last of some instructions multiplies."""
    _, found = entry(*lines)
    return arithmetic.product(list(found.values())[-1], found)


def test_convolutions_of_cudnn():
    window = "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f"
    arrays = (
        "%x = bf16[2,4,4,3]{3,2,1,0} parameter(0)",
        "%k = bf16[5,3,3,3]{3,2,1,0} parameter(1)",
        "%y = bf16[2,4,4,5]{3,2,1,0} parameter(2)",
    )
    expected = 2 * 2 * 5 * 3 * 100
    results = {
        "Forward": ("bf16[2,4,4,5]", "%x, %k"),
        "BackwardInput": ("bf16[2,4,4,3]", "%y, %k"),
        "BackwardFilter": ("bf16[5,3,3,3]", "%x, %y"),
    }
    for name, (kind, operands) in results.items():
        call = f"ROOT %c = ({kind}{{3,2,1,0}}, u8[0]{{0}}) custom-call({operands}), {window}, "
        found = made(*arrays, f'{call}custom_call_target="__cudnn$conv{name}"')
        assert found == arithmetic.Product("convolution", ("bf16", "bf16", "bf16"), "default", expected), name


def test_products_of_matrices():
    arrays = "%a = f32[7,3]{1,0} parameter(0)", "%b = f32[3,5]{1,0} parameter(1)"
    plain = "lhs_contracting_dims={1}, rhs_contracting_dims={0}, operand_precision={highest,default}"
    found = made(*arrays, f"ROOT %c = f32[7,5]{{1,0}} dot(%a, %b), {plain}")
    assert found == arithmetic.Product("dot", ("f32", "f32", "f32"), "default", 210)
    config = '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]},"precision_config":{"operand_precision":'
    config += '["HIGHEST","HIGHEST"]}}'
    call = 'custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config='
    found = made(*arrays, f"ROOT %c = (f32[7,5]{{1,0}}, s8[4]{{0}}) {call}{config}")
    assert found == arithmetic.Product("dot", ("f32", "f32", "f32"), "highest", 210)
    assert made(*arrays, "ROOT %c = f32[7,3]{1,0} add(%a, %a)") is None


GATHERING = """\
%gathering (p0: u8[1000,16], p1: s32[4]) -> f32[4,16] {
  %p0 = u8[1000,16]{1,0} parameter(0)
  %p1 = s32[4]{0} parameter(1)
  %rows = u8[4,16]{1,0} gather(%p0, %p1), offset_dims={1}, slice_sizes={1,16}
  ROOT %floats = f32[4,16]{1,0} convert(%rows)
}
"""


def test_of_a_dataset_only_the_rows_of_the_batch_are_read():
    module, found = entry(
        "%data = u8[1000,16]{1,0} parameter(0)",
        "%rows = s32[4]{0} parameter(1)",
        "ROOT %batch = f32[4,16]{1,0} fusion(%data, %rows), kind=kLoop, calls=%gathering",
        before=GATHERING,
    )
    assert traffic.kernel_bytes(module, "main", found["batch"]) == 4 * 16 + 4 * 4 + 4 * 16 * 4


def test_a_fusion_that_also_uses_the_dataset_otherwise_reads_all_of_it():
    module, found = entry(
        "%data = u8[1000,16]{1,0} parameter(0)",
        "%rows = s32[4]{0} parameter(1)",
        "ROOT %batch = f32[4,16]{1,0} fusion(%data, %rows), kind=kLoop, calls=%gathering",
        before=GATHERING.replace("  ROOT", "  %all = u8[16,1000]{1,0} transpose(%p0), dimensions={1,0}\n  ROOT"),
    )
    assert traffic.kernel_bytes(module, "main", found["batch"]) == 16000 + 4 * 4 + 4 * 16 * 4


def test_an_update_in_place_writes_what_it_updates():
    updating = """\
%updating (p0: f32[100,8], p1: f32[1,8], p2: s32[]) -> f32[100,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = f32[1,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %new = f32[100,8]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}
"""
    module, found = entry(
        "%buffer = f32[100,8]{1,0} parameter(0)",
        "%row = f32[1,8]{1,0} parameter(1)",
        "%at = s32[] parameter(2)",
        "ROOT %all = f32[100,8]{1,0} fusion(%buffer, %row, %at), kind=kLoop, calls=%updating",
        before=updating,
    )
    assert traffic.kernel_bytes(module, "main", found["all"]) == 32 + 4 + 32


def test_an_operand_that_is_used_twice_is_read_once():
    module, found = entry("%x = f32[8]{0} parameter(0)", "ROOT %y = f32[8]{0} add(%x, %x)")
    assert traffic.kernel_bytes(module, "main", found["y"]) == 64


def test_copies_are_kernels_that_only_move():
    fusions = """\
%turned (p: f32[8,3]) -> f32[3,8] {
  %p = f32[8,3]{1,0} parameter(0)
  ROOT %t = f32[3,8]{1,0} transpose(%p), dimensions={1,0}
}

%scaled (q: f32[8,3]) -> f32[3,8] {
  %q = f32[8,3]{1,0} parameter(0)
  %u = f32[3,8]{1,0} transpose(%q), dimensions={1,0}
  ROOT %v = f32[3,8]{1,0} multiply(%u, %u)
}
"""
    found = facts(
        program(
            "%x = f32[8,3]{1,0} parameter(0)",
            "%a = f32[3,8]{1,0} fusion(%x), kind=kLoop, calls=%turned",
            "%b = f32[3,8]{1,0} fusion(%x), kind=kLoop, calls=%scaled",
            "%c = (f32[8,3]{1,0:S(1)}, f32[8,3]{1,0}, u32[]) copy-start(%x)",
            "%d = (f32[8,3]{0,1}, f32[8,3]{1,0}, u32[]) copy-start(%x)",
            "ROOT %e = f32[8,3]{0,1} copy(%x)",
            before=fusions,
        )
    )
    assert {(copy.name, copy.nbytes) for copy in found.copies} == {("a", 96), ("d", 96), ("e", 96)}


def test_host_calls_and_constants():
    found = facts(
        program(
            "%big = f32[1000]{0} constant({...})",
            '%a = f32[8]{0} custom-call(), custom_call_target="xla_ffi_python_gpu_callback"',
            '%b = f32[8]{0} custom-call(), custom_call_target="TopK"',
            "%c = token[] after-all()",
            "ROOT %d = (f32[8]{0}, token[]) infeed(%c)",
        )
    )
    assert found.host_calls == ("xla_ffi_python_gpu_callback", "infeed")
    assert found.largest_constant == 4000


def test_conditionals_in_a_loop_belong_to_it():
    branch = "%branch (p: s32[]) -> s32[] {\n  ROOT %p = s32[] parameter(0)\n}\n\n"
    body = STEP.replace("%body (arg", f"{branch}%body (arg")
    chosen = "  %chosen = s32[] conditional(%i, %i, %i), branch_computations={%branch, %branch}\n  ROOT %out"
    found = facts(body.replace("  ROOT %out", chosen))
    assert (found.conditionals, found.step.conditionals) == (1, 1)


def test_a_loop_inside_a_step_is_found():
    inner = "  %inner = f32[2] while(%i), condition=%condition, body=%add\n  ROOT %out"
    found = facts(STEP.replace("  ROOT %out", inner))
    assert found.step.loops_inside == 1
    assert found.step.depth == 1
