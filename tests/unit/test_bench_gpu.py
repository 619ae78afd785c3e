"""What the GPU benchmark says of what it measured."""

import pytest

from hack.bench.gpu.figures import Row, last_line, table
from hack.bench.gpu.kinds import by_kind, kind

GIB = 2**30
FAST, PLAIN = Row("fast", 0.95, int(58.5 * GIB), 1.0, 59 * GIB), Row("plain", 1.71, 16 * GIB)


def test_the_last_line_has_every_key_and_a_dash_for_what_was_not_measured() -> None:
    rows = {row.name: row for row in (FAST, PLAIN, Row("fast 8 GB", 1.66, int(6.5 * GIB)), Row("unsloth", 0.0, note="not installed"))}
    assert last_line(rows) == "fast=0.950 plain=1.710 unsloth=- unsloth_best=- gib=58.50 small_gib=6.50 small_s=1.660"
    assert last_line({}) == "fast=- plain=- unsloth=- unsloth_best=- gib=- small_gib=- small_s=-"


def test_the_table_compares_with_the_reference_and_says_what_is_missing() -> None:
    lines = table([FAST, PLAIN, Row("unsloth", 0.0, note="the package unsloth is not installed")], "fast").splitlines()
    assert lines[2] == "| fast | 0.950 | 1.000 | 58.50 | 59.00 | 1.00 |  |"
    assert lines[3] == "| plain | 1.710 | - | 16.00 | - | 1.80 |  |"
    assert lines[4] == "| unsloth | - | - | - | - | - | the package unsloth is not installed |"


def test_without_a_reference_nothing_is_compared() -> None:
    assert "| 1.710 | - | 16.00 | - | - |" in table([PLAIN], "fast")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvjet_sm90_tst_320x128_64x3_1x2_h_bz_coopB_NNT", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26", "attention"),
        ("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>", "dequantise"),
        ("_rms_norm_backward_kernel", "norms"),
        ("_swiglu_forward_kernel", "swiglu"),
        ("_triton_rope", "rope"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("something new", "other"),
    ],
)
def test_a_kernel_is_told_by_its_name(name: str, expected: str) -> None:
    assert kind(name) == expected


def test_kinds_add_up_and_the_longest_comes_first() -> None:
    rows = [("nvjet_a", 2, 1.5), ("_nf4", 10, 3.0), ("nvjet_b", 1, 2.5)]
    assert by_kind(rows) == {"products": (4.0, 3), "dequantise": (3.0, 10)}
    assert list(by_kind(rows)) == ["products", "dequantise"]
