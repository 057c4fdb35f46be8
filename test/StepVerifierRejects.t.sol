// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IStepVerifier, Witness} from "../contracts/interfaces/IStepVerifier.sol";
import {ITrees} from "../contracts/interfaces/ITrees.sol";
import {Judging} from "./support/Judging.sol";

/// Claims and witnesses that lead nowhere, each with the error that says why. Mutations of good witnesses are in the other tests.
contract StepVerifierRejectsTest is Judging {
    /// a good claim: x + y of two operators in a block
    function setUp() public override {
        super.setUp();
        d.operands[0] = operand(OP, I32, tensor(list(3, 4), I32));
        d.operands[1] = operand(OP, I32, tensor(list(5, 6), I32));
        d.opcode = 20;
        d.dtype = 2;
        d.outer = 2;
        expected = list(8, 10);
        place();
    }

    function readAdd(uint256 i) internal {
        readOp(0, i, 1, I32);
        readOp(1, i, 1, I32);
    }

    /// expects `err` of the descriptor as it is now
    function refused(bytes memory err) internal {
        shaped();
        prepare(1, readAdd);
        Witness memory w = witness(d.dtype);
        refused(w, err);
    }

    /// commits to the descriptor as it is now, and to a tensor of its shape
    function shaped() internal {
        descriptors[claim.op] = describe(d, false);
        uint256 blocks = d.div == 0 ? 1 : (position() + d.div) / d.div;
        ops[claim.op] = new bytes(d.outer * blocks * d.inner * width(d.dtype));
    }

    function refused(Witness memory w, bytes memory err) internal {
        (bool ok, bytes memory actual) =
            address(verifier).staticcall(abi.encodeCall(verifier.judge, (traceContext(), modelShape(), claim, w)));
        assertFalse(ok, "accepted");
        assertEq(actual, err);
    }

    function noSuch(uint8 what, uint256 index, uint256 count) internal pure returns (bytes memory) {
        return abi.encodeWithSelector(IStepVerifier.NoSuch.selector, what, index, count);
    }

    function malformed() internal view returns (bytes memory) {
        return abi.encodeWithSelector(IStepVerifier.Malformed.selector, uint256(d.opcode));
    }

    function dataLength(uint256 actual, uint256 wanted) internal pure returns (bytes memory) {
        return abi.encodeWithSelector(ITrees.DataLength.selector, actual, wanted);
    }

    function wrongKind(uint256 k, uint256 kind) internal pure returns (bytes memory) {
        return abi.encodeWithSelector(IStepVerifier.WrongKind.selector, k, kind);
    }

    function noSuchOperand(uint256 kind, uint256 index, uint256 count) internal pure returns (bytes memory) {
        return abi.encodeWithSelector(IStepVerifier.NoSuchOperand.selector, kind, index, count);
    }

    // ------------------------------------------------------------------------------------------------------ claim

    function test_the_claim_is_good() public {
        prepare(1, readAdd);
        (int256 claimed, int256 computed) = judge(witness(I32));
        assertEq(claimed, 10);
        assertEq(computed, 10);
    }

    function test_a_layer_beyond_the_head() public {
        prepare(1, readAdd);
        Witness memory w = witness(I32);
        claim.layer = 5;
        refused(w, noSuch(0, 5, 5));
    }

    function test_a_row_beyond_the_positions() public {
        prepare(1, readAdd);
        Witness memory w = witness(I32);
        claim.row = 24;
        refused(w, noSuch(1, 24, 24));
    }

    function test_a_head_row_beyond_the_output() public {
        prepare(1, readAdd);
        Witness memory w = witness(I32);
        claim.layer = 4;
        claim.row = 5;
        refused(w, noSuch(1, 5, 5));
    }

    function test_an_operator_beyond_the_program() public {
        prepare(1, readAdd);
        Witness memory w = witness(I32);
        claim.op = 4;
        refused(w, noSuch(2, 4, 4));
    }

    function test_an_element_beyond_the_output() public {
        prepare(1, readAdd);
        Witness memory w = witness(I32);
        claim.element = 2;
        refused(w, noSuch(3, 2, 2));
    }

    function test_a_value_behind_the_end() public {
        prepare(1, readAdd);
        Witness memory w = witness(I32);
        w.page = bytes.concat(w.page, hex"00000000");
        refused(w, dataLength(12, 8));
    }

    /// Whoever commits to a page of another length than the shape's, and opens it truthfully.
    function test_a_claimed_page_of_another_length() public {
        bytes memory right = ops[claim.op];
        ops[claim.op] = longer(right);
        prepare(1, readAdd);
        refused(witness(I32), dataLength(9, 8));
        ops[claim.op] = shorter(right);
        prepare(0, readAdd);
        refused(witness(I32), dataLength(7, 8));
    }

    function test_a_read_page_of_another_length() public {
        bytes memory right = ops[1];
        ops[1] = longer(right);
        prepare(1, readAdd);
        refused(witness(I32), dataLength(9, 8));
        ops[1] = shorter(right);
        prepare(0, readAdd);
        refused(witness(I32), dataLength(7, 8));
    }

    function readTableAndPrevious(uint256 i) internal {
        readTable(0, i, 1, I32);
        readPrevious(0, i, 1, I32);
    }

    function test_a_table_or_an_export_of_another_length() public {
        d.operands = [operand(TABLE, I32, 0), operand(PREV, I32, 0), uint64(0), uint64(0)];
        descriptors[claim.op] = describe(d, false);
        bytes memory right = encode(list(3, 4), I32);
        tables.push(right);
        masks[1] = 1;
        exported[1][17].push(encode(list(5, 6), I32));
        prepare(1, readTableAndPrevious);
        (int256 claimed, int256 computed) = judge(witness(I32));
        assertEq(claimed, computed);
        tables[0] = longer(right);
        prepare(1, readTableAndPrevious);
        refused(witness(I32), dataLength(9, 8));
        tables[0] = shorter(right);
        prepare(0, readTableAndPrevious);
        refused(witness(I32), dataLength(7, 8));
        tables[0] = right;
        right = exported[1][17][0];
        exported[1][17][0] = longer(right);
        prepare(1, readTableAndPrevious);
        refused(witness(I32), dataLength(9, 8));
        exported[1][17][0] = shorter(right);
        prepare(0, readTableAndPrevious);
        refused(witness(I32), dataLength(7, 8));
    }

    function test_another_operators_descriptor() public {
        prepare(1, readAdd);
        Witness memory w = witness(I32);
        w.descriptor = descriptors[0];
        (bool ok,) =
            address(verifier).staticcall(abi.encodeCall(verifier.judge, (traceContext(), modelShape(), claim, w)));
        assertFalse(ok);
    }

    // -------------------------------------------------------------------------------------------------- descriptor

    function test_opcodes_that_do_not_exist() public {
        uint8[3] memory codes = [0, 33, 255];
        for (uint256 i; i < 3; i++) {
            d.opcode = codes[i];
            refused(malformed());
        }
    }

    function test_an_element_type_that_does_not_exist() public {
        descriptors[claim.op] = describe(d, false);
        d.dtype = 4;
        descriptors[claim.op] = describe(d, false);
        prepare(1, readAdd);
        refused(witness(I32), malformed());
    }

    function test_parameters_that_divide_by_nothing() public {
        uint8[10] memory codes = [2, 3, 6, 9, 10, 13, 14, 16, 17, 18];
        for (uint256 i; i < codes.length; i++) {
            d.opcode = codes[i];
            d.bits = codes[i] == 6 ? 8 : 0;
            (d.div, d.p) = codes[i] == 13 ? (uint32(1), [int32(0), -1, -1, -1]) : (uint32(0), [int32(0), -1, -1, -1]);
            refused(malformed());
        }
    }

    function test_quantisers_of_too_many_bits() public {
        d.opcode = 6;
        d.p[0] = 1;
        d.bits = 17;
        refused(malformed());
        d.bits = 7;
        refused(malformed());
    }

    function test_blocks_that_are_not_the_shapes() public {
        d.opcode = 14;
        d.outer = 1;
        d.p[0] = 16;
        d.div = 8;
        refused(malformed());
        d.opcode = 18;
        d.outer = 2;
        d.div = 0;
        d.p = [int32(1), 1, 16, 0];
        refused(malformed());
    }

    // ---------------------------------------------------------------------------------------------------- operands

    function test_operands_of_the_wrong_kind() public {
        d.operands[0] = operand(CACHE, I32, 0);
        refused(wrongKind(0, CACHE));
        d.operands[0] = operand(WEIGHT, I32, 0);
        refused(wrongKind(0, WEIGHT));
        d.operands[0] = operand(TOKEN, I32, 0);
        refused(wrongKind(0, TOKEN));
        d.operands[0] = 0;
        refused(wrongKind(0, 0));
        d.operands[0] = operand(7, I32, 0);
        refused(wrongKind(0, 7));
    }

    function test_an_embedding_of_no_token() public {
        d.opcode = 1;
        d.p = [int32(4), 0, 1, 0];
        refused(wrongKind(0, OP));
        d.operands[0] = operand(TOKEN, I32, 0);
        refused(abi.encodeWithSelector(ITrees.DataLength.selector, 8, 80));
    }

    function test_a_later_operator() public {
        d.operands[1] = operand(OP, I32, 2);
        refused(noSuchOperand(OP, 2, 2));
        d.operands[1] = operand(OP, I32, 3);
        refused(noSuchOperand(OP, 3, 2));
    }

    function test_a_tail_of_nothing() public {
        d.operands[0] = tail(I32, 0, 0);
        refused(malformed());
    }

    function test_a_layer_before_the_embedding() public {
        claim.layer = 0;
        d.operands[0] = operand(PREV, I32, 0);
        refused(noSuchOperand(PREV, 0, 0));
    }

    function test_an_export_that_does_not_exist() public {
        masks[1] = 3;
        d.operands[0] = operand(PREV, I32, 2);
        descriptors[claim.op] = describe(d, false);
        prepare(1, readAdd);
        Witness memory w = witness(I32);
        w.reads[0].leaves = new bytes32[](2);
        refused(w, noSuchOperand(PREV, 2, 2));
        w.reads[0].leaves = new bytes32[](3);
        refused(w, abi.encodeWithSelector(IStepVerifier.LeafCount.selector, 3, 2));
    }

    function test_a_cache_in_the_head() public {
        claim.layer = 4;
        claim.row = 0;
        d.opcode = 18;
        d.div = 16;
        d.outer = 1;
        d.inner = 2;
        d.p = [int32(2), 1, 16, 0];
        d.operands[0] = operand(OP, U16, 0);
        d.operands[1] = operand(CACHE, I16, 0);
        ops[0] = new bytes(40);
        shaped();
        claim.element = 1;
        readOp(0, 0, 16, U16);
        refused(witness(I32), noSuchOperand(CACHE, 0, 0));
    }

    function test_a_stride_outside_the_blocks() public {
        claim.layer = 4;
        claim.row = 0;
        tables.push(encode(vector(3, 7), I16));
        d.opcode = 5;
        d.p[0] = 2;
        d.operands[1] = operand(TABLE, I16, 0) | 1 << 32;
        descriptors[claim.op] = describe(d, false);
        claim.element = 1;
        readOp(0, 1, 1, I32);
        readTable(0, 1, 1, I16);
        refused(witness(I32), malformed());
    }

    // ------------------------------------------------------------------------------------------------------- reads

    function test_a_read_with_leaves() public {
        prepare(1, readAdd);
        Witness memory w = witness(I32);
        w.reads[1].leaves = new bytes32[](1);
        refused(w, abi.encodeWithSelector(IStepVerifier.FieldNotEmpty.selector));
    }

    function test_too_few_and_too_many_reads() public {
        prepare(1, readAdd);
        readOp(0, 1, 1, I32);
        refused(witness(I32), abi.encodeWithSelector(IStepVerifier.ReadCount.selector, 3, 2));
        reads.pop();
        reads.pop();
        refused(witness(I32), abi.encodeWithSelector(IStepVerifier.ReadCount.selector, 1, 2));
    }

    function test_a_hint_for_nothing() public {
        hint = 7;
        refused(abi.encodeWithSelector(IStepVerifier.UnexpectedHint.selector, uint32(7)));
    }

    function test_an_operator_list_of_another_length() public {
        prepare(1, readAdd);
        Witness memory w = witness(I32);
        w.opRoots = new bytes32[](3);
        refused(w, abi.encodeWithSelector(IStepVerifier.OpListLength.selector, 3, 4));
    }
}
