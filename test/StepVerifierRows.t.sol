// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IStepVerifier} from "../contracts/interfaces/IStepVerifier.sol";
import {Judging} from "./support/Judging.sol";
import {Naive} from "./support/Naive.sol";

/// Weight rows in blocks: LINEAR and EMBED on Q4 and Q8.
contract StepVerifierRowsTest is Judging {
    uint256 internal constant Q4 = 1;
    uint256 internal constant Q8 = 2;

    uint256 internal dtypeA;
    uint256 internal sizeK;
    /// the row that was made last
    int256[] internal weights;

    /// what follows the scale pairs of a row of `k` elements; its weights are left in `weights`
    /// @param extreme every scale, minimum and number as far from zero as it can be
    function row(uint256 format, uint256 k, bool extreme) internal returns (bytes memory) {
        int256[] memory s = vector(k / 32, 12);
        int256[] memory m = format == Q4 ? vector(k / 32, 15) : new int256[](k / 32);
        int256[] memory q = format == Q4 ? magnitudes(k, 4) : vector(k, 7);
        delete weights;
        for (uint256 i; i < k; i++) {
            if (extreme) {
                bool negative = random(1) == 0;
                s[i / 32] = negative ? int256(-4095) : int256(4095);
                if (format == Q4) (m[i / 32], q[i]) = (negative ? int256(-32767) : int256(32767), 15);
                else q[i] = q[i] < 0 ? int256(-127) : int256(127);
            }
        }
        for (uint256 i; i < k; i++) {
            weights.push(Naive.weight(s[i / 32], m[i / 32], q[i]));
        }
        if (format == Q8) return bytes.concat(encode(s, I16), encode(q, I8));
        bytes memory packed = new bytes(k / 2);
        for (uint256 i; i < k; i++) {
            uint256 at = i / 32 * 16 + i % 16;
            packed[at] |= bytes1(uint8(uint256(q[i]) << (i % 32 < 16 ? 0 : 4)));
        }
        return bytes.concat(encode(s, I16), encode(m, I16), packed);
    }

    function linear(uint256 format, uint256 dtype, uint256 k, bool extreme) internal {
        (dtypeA, sizeK) = (dtype, k);
        int256[] memory a = vector(k, dtype == I8 ? 7 : 15);
        if (extreme) {
            for (uint256 i; i < k; i++) {
                a[i] = (a[i] < 0 ? int256(-1) : int256(1)) * (dtype == I8 ? int256(127) : int256(32767));
            }
        }
        d.operands[0] = operand(OP, dtype, tensor(a, dtype));
        d.operands[1] = operand(OP, I32, tensor(list(50001, -20), I32));
        d.operands[2] = operand(WEIGHT, I8, 0);
        d.opcode = 9;
        d.dtype = 2;
        d.outer = 4;
        d.p = [int32(int256(k)), 1, 2, int32(int256(format))];
        matrices.push();
        expected = new int256[](4);
        for (uint256 r; r < 4; r++) {
            matrices[0].push(bytes.concat(hex"ffff7fff9abc0005", row(format, k, extreme)));
            int256 acc;
            for (uint256 i; i < k; i++) {
                acc += a[i] * weights[i];
            }
            acc = Naive.narrow(acc, format == Q4 ? 12 : 16);
            expected[r] = Naive.smulrs(acc, 50001 * 0x9abc, 5 + 20);
        }
        check(readLinear);
    }

    function readLinear(uint256 i) internal {
        readOp(0, 0, sizeK, dtypeA);
        readOp(1, 0, 2, I32);
        readRow(0, i);
    }

    function test_linear_q4_of_8_bits() public {
        linear(Q4, I8, 96, false);
    }

    function test_linear_q4_of_16_bits() public {
        linear(Q4, I16, 96, false);
    }

    function test_linear_q8_of_8_bits() public {
        linear(Q8, I8, 96, false);
    }

    function test_linear_q8_of_16_bits() public {
        linear(Q8, I16, 96, false);
    }

    function test_linear_q4_of_extremes() public {
        linear(Q4, I16, 64, true);
    }

    function test_linear_q4_of_8_bit_extremes() public {
        linear(Q4, I8, 64, true);
    }

    function test_linear_q8_of_extremes() public {
        linear(Q8, I16, 64, true);
    }

    function test_linear_q8_of_8_bit_extremes() public {
        linear(Q8, I8, 64, true);
    }

    /// An accumulator that the importer would not have let through is no right input.
    function test_linear_beyond_32_bits() public {
        int256[] memory a = new int256[](2144);
        for (uint256 i; i < a.length; i++) {
            a[i] = 32767;
        }
        (dtypeA, sizeK) = (I16, a.length);
        d.operands[0] = operand(OP, I16, tensor(a, I16));
        d.operands[1] = operand(OP, I32, tensor(list(50001, -20), I32));
        d.operands[2] = operand(WEIGHT, I8, 0);
        d.opcode = 9;
        d.dtype = 2;
        d.p = [int32(2144), 0, 1, 1];
        matrices.push();
        int256[] memory s = new int256[](67);
        int256[] memory m = new int256[](67);
        bytes memory q = new bytes(1072);
        for (uint256 i; i < q.length; i++) {
            (s[i / 16], m[i / 16], q[i]) = (4095, 32767, 0xff);
        }
        matrices[0].push(bytes.concat(hex"9abc0005", encode(s, I16), encode(m, I16), q));
        expected = list(0);
        place();
        prepare(0, readLinear);
        int256 acc = 2144 * 32767 * (4095 * 15 + 2 * 32767);
        vm.expectRevert(abi.encodeWithSelector(IStepVerifier.ValueRange.selector, acc));
        judge(witness(I32));
    }

    function embed(uint256 format) internal {
        claim.layer = 0;
        masks[0] = 1;
        d.outer = 64;
        matrices.push();
        expected = new int256[](64);
        for (uint256 r; r < 101; r++) {
            matrices[0].push(bytes.concat(hex"c0de0011", row(format, 64, r % 2 == 0)));
            for (uint256 i; i < 64 && r == tokens[17]; i++) {
                expected[i] = Naive.smulrs(weights[i], 0xc0de, 0x11);
            }
        }
        d.opcode = 1;
        d.dtype = 2;
        d.p = [int32(101), 0, 1, int32(int256(format))];
        d.operands[0] = operand(TOKEN, 0, 0);
        d.operands[1] = operand(WEIGHT, I8, 0);
        check(readEmbed);
    }

    function readEmbed(uint256) internal {
        readToken(17);
        readRow(0, tokens[17]);
    }

    function test_embed_q4() public {
        embed(Q4);
    }

    function test_embed_q8() public {
        embed(Q8);
    }
}
