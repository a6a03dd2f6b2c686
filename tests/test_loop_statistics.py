"""Loops in machine code: nested ones, blocks that a compiler has moved away, padding, functions, and real compiled kernels."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType

import pytest

from .helpers import ROOT

MATRIX = re.compile(r"HGMMA|v_mfma")

# Before the loops 2, in the outer loop 4 beside the inner one's 3; behind its end padding that jumps to itself.
SASS = """
kernel:
.text.kernel:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   BRA.U !UP0, `(.L_x_3) ;
.L_x_0:
        /*0020*/                   LDG.E R1, [R2] ;
        /*0030*/                   HGMMA.64x64x16.F32 R4, gdesc[UR4], R4 ;
.L_x_1:
        /*0040*/                   FADD R1, R1, R1 ;
        /*0050*/                   ISETP.NE.AND P0, PT, R1, RZ, PT ;
        /*0060*/              @P0 BRA `(.L_x_1) ;
        /*0070*/                   BSSY B0, `(.L_x_0) ;
        /*0080*/             @!P2 BRA `(.L_x_0) ;
.L_x_3:
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   BRA `(.L_x_2);
        /*00b0*/                   NOP;
"""

# The loop's second half stands behind the end of the program: 2 instructions and 3 more.
AMD = """
kernel:
	s_load_dwordx2 s[0:1], s[4:5], 0x0
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	v_mfma_f32_32x32x8_bf16 v[0:15], v[2:3], v[4:5], v[0:15]
	s_cbranch_scc0 .LBB0_3
; %bb.2:
	s_endpgm
.LBB0_3:
	v_add_u32_e32 v0, v1, v2
	s_nop 0
	s_branch .LBB0_1
	.section	.AMDGPU.csdata
"""


@pytest.fixture
def statistics() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loop_statistics", ROOT / "tools" / "loop_statistics.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loop_statistics"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("walked", "turns", "expected"), [(True, 1, 7), (True, 3, 7 + 6), (False, 1, 10), (False, 2, 10 + 7)])
def test_nested_loops_in_sass(statistics: ModuleType, walked: bool, turns: int, expected: int) -> None:
    assert statistics.instructions_per_tile(statistics.read_sass(SASS), walked, turns, MATRIX) == expected


def test_a_loop_whose_blocks_lie_apart(statistics: ModuleType) -> None:
    code = statistics.read_amd(AMD)
    assert len(code) == 7
    assert statistics.instructions_per_tile(code, True, 1, MATRIX) == 5
    assert statistics.instructions_per_tile(code, False, 1, MATRIX) == 7


def test_of_several_loops_the_one_with_products_walks(statistics: ModuleType) -> None:
    longer = "\n".join(["more:", "\ts_load_dword s0, s[4:5], 0x0", ".LBB0_9:", *["\tv_add_u32_e32 v0, v1, v2"] * 9])
    code = statistics.read_amd(longer + "\n\ts_cbranch_scc1 .LBB0_9\n" + AMD)
    assert statistics.instructions_per_tile(code, True, 1, MATRIX) == 5


def test_a_walking_kernel_without_a_loop_is_a_mistake(statistics: ModuleType) -> None:
    with pytest.raises(ValueError, match="no loop"):
        statistics.instructions_per_tile(statistics.read_amd("\ts_nop 0\n\ts_endpgm\n"), True, 1, MATRIX)
