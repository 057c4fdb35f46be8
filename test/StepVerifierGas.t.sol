// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Claim, Witness} from "../contracts/interfaces/IStepVerifier.sol";
import {Judging} from "./support/Judging.sol";
import {Naive} from "./support/Naive.sol";

/// What `judge` costs at the shapes of a model of 135 million weights: hidden 576, 9 heads on 3 key/value heads of 64, feed-forward
/// 1,536, 30 blocks of 45 operators, vocabulary 49,152. Values are random, so hardly a byte of calldata is zero: real ones cost less.
/// Kept in test/gas: `… gas` is the call's execution, `… calldata` the price of the bytes by the floor of EIP-7623.
contract StepVerifierGasTest is Judging {
    uint256 internal constant OPS = 45;

    function setUp() public override {
        super.setUp();
        layers = 30;
        nIn = 120;
        nOut = 8;
        for (uint256 i = tokens.length; i < nIn + nOut; i++) {
            tokens.push(uint32(i));
        }
        claim.layer = 15;
        claim.row = 100;
    }

    /// fills the section up to 45 operators and measures the proof of `element`
    function measure(string memory name, uint256 element, function(uint256) internal read) internal {
        uint256 count = claim.layer == 0 ? 1 : claim.layer > layers ? 15 : OPS;
        claim.op = uint16(ops.length);
        ops.push(encode(expected, d.dtype));
        descriptors.push(describe(d, true));
        while (ops.length < count) {
            ops.push("behind");
            descriptors.push(new bytes(64));
        }
        prepare(element, read);
        Witness memory w = witness(d.dtype);
        (bool ok,) =
            address(verifier).staticcall(abi.encodeCall(verifier.judge, (traceContext(), modelShape(), claim, w)));
        uint256 gas = vm.lastCallGas().gasTotalUsed;
        assertTrue(ok);
        bytes memory data = abi.encode(claim, w);
        uint256 floor;
        for (uint256 i; i < data.length; i++) {
            floor += data[i] == 0 ? 10 : 40;
        }
        vm.snapshotValue("StepVerifier", string.concat(name, " gas"), gas);
        vm.snapshotValue("StepVerifier", string.concat(name, " calldata"), floor);
    }

    uint256 internal dtypeA;
    uint256 internal sizeK;

    function linear(string memory name, uint256 dtype, uint256 k, uint256 outputs) internal {
        (dtypeA, sizeK) = (dtype, k);
        d.operands[0] = operand(OP, dtype, tensor(vector(k, dtype == I8 ? 7 : 15), dtype));
        d.operands[1] = operand(OP, I32, tensor(list(50001, -20), I32));
        d.operands[2] = operand(WEIGHT, I8, 0);
        d.opcode = 9;
        d.dtype = 2;
        d.outer = uint32(outputs);
        d.p = [int32(int256(k)), 0, 1, 0];
        otherMatrices = 210;
        matrixRows = outputs;
        rowIndex = outputs / 3;
        matrices.push();
        matrices[0].push(bytes.concat(hex"9abc0005", encode(vector(k, 7), I8)));
        expected = vector(outputs, 30);
        measure(name, rowIndex, readLinear);
    }

    /// random bytes are a row of any format
    function blocks(string memory name, uint256 format, uint256 size) internal {
        (dtypeA, sizeK) = (I16, 1536);
        d.operands[0] = operand(OP, I16, tensor(vector(1536, 15), I16));
        d.operands[1] = operand(OP, I32, tensor(list(50001, -20), I32));
        d.operands[2] = operand(WEIGHT, I8, 0);
        d.opcode = 9;
        d.dtype = 2;
        d.outer = 576;
        d.p = [int32(1536), 0, 1, int32(int256(format))];
        otherMatrices = 210;
        matrixRows = 576;
        rowIndex = 192;
        matrices.push();
        matrices[0].push(bytes.concat(hex"9abc0005", encode(vector(size, 7), I8)));
        expected = vector(576, 30);
        measure(name, rowIndex, readLinear);
    }

    function test_linear_1536_q4() public {
        blocks("LINEAR 1536 q4 i16", 1, 48 * 20);
    }

    function test_linear_1536_q8() public {
        blocks("LINEAR 1536 q8 i16", 2, 48 * 34);
    }

    function readLinear(uint256 i) internal {
        readOp(0, 0, sizeK, dtypeA);
        readOp(1, 0, 2, I32);
        readRow(0, i);
    }

    function test_linear_576_i8() public {
        linear("LINEAR 576 i8", I8, 576, 576);
    }

    function test_linear_576_i16() public {
        linear("LINEAR 576 i16", I16, 576, 1536);
    }

    function test_linear_1536_i16() public {
        linear("LINEAR 1536 i16", I16, 1536, 576);
    }

    function previousOf() internal {
        exportTensor(claim.layer - 1, position(), vector(192, 7), I8);
        exportTensor(claim.layer - 1, position(), vector(6, 15), I32);
        exportTensor(claim.layer - 1, position(), vector(192, 15), I16);
        exportTensor(claim.layer - 1, position(), vector(576, 27), I32);
        masks[section(claim.layer - 1)] = 15;
    }

    function test_max_abs() public {
        previousOf();
        d.opcode = 2;
        d.dtype = 2;
        d.p = [int32(1), 576, 0, 0];
        d.operands[0] = operand(PREV, I32, 0);
        expected = vector(1, 27);
        measure("MAX_ABS 576", 0, readPreviousAll);
    }

    function test_sum_sq() public {
        previousOf();
        d.operands[1] = operand(OP, I32, tensor(list(1 << 26), I32));
        d.operands[0] = operand(PREV, I32, 0);
        d.opcode = 3;
        d.dtype = 2;
        d.inner = 2;
        d.p[0] = 576;
        expected = vector(2, 27);
        measure("SUM_SQ 576", 0, readSumSq);
    }

    function readPreviousAll(uint256) internal {
        readPrevious(3, 0, 576, I32);
    }

    function readSumSq(uint256 i) internal {
        readPreviousAll(i);
        readOp(0, 0, 1, I32);
    }

    function test_add() public {
        previousOf();
        d.operands[1] = operand(OP, I32, tensor(vector(576, 27), I32));
        d.operands[0] = operand(PREV, I32, 0);
        d.opcode = 20;
        d.dtype = 2;
        d.outer = 576;
        expected = vector(576, 27);
        measure("ADD", 300, readAdd);
    }

    function readAdd(uint256 i) internal {
        readPrevious(3, i, 1, I32);
        readOp(0, i, 1, I32);
    }

    function test_gain() public {
        tables.push(encode(vector(577, 15), I16));
        for (uint256 i; i < 64; i++) {
            tables.push("a table");
        }
        d.operands[0] = operand(OP, I32, tensor(vector(576, 27), I32));
        d.operands[1] = operand(TABLE, I16, 0);
        d.opcode = 5;
        d.dtype = 2;
        d.outer = 576;
        d.p[0] = 576;
        expected = vector(576, 27);
        measure("GAIN", 300, readGain);
    }

    function readGain(uint256 i) internal {
        readOp(0, i, 1, I32);
        readTable(0, i, 1, I16);
    }

    function test_quant() public {
        int256[] memory v = vector(576, 27);
        d.operands[0] = operand(OP, I32, tensor(v, I32));
        d.operands[1] = operand(OP, I32, tensor(list(1 << 27), I32));
        d.opcode = 6;
        d.bits = 16;
        d.dtype = 1;
        d.outer = 576;
        d.p[0] = 576;
        expected = vector(576, 15);
        measure("QUANT", 300, readQuant);
    }

    function readQuant(uint256 i) internal {
        readOp(0, i, 1, I32);
        readOp(1, 0, 1, I32);
    }

    function test_silu_mul() public {
        d.operands[0] = operand(OP, I32, tensor(vector(1536, 0), I32));
        d.operands[1] = operand(OP, I32, tensor(vector(1536, 27), I32));
        d.operands[2] = operand(TABLE, U16, 0);
        expTable();
        for (uint256 i; i < 64; i++) {
            tables.push("a table");
        }
        d.opcode = 19;
        d.dtype = 2;
        d.outer = 1536;
        expected = vector(1536, 27);
        measure("SILU_MUL", 1000, readSilu);
    }

    function readSilu(uint256 i) internal {
        readOp(0, i, 1, I32);
        readOp(1, i, 1, I32);
        readTable(0, 0, 2, U16);
    }

    // ---------------------------------------------------------------------------------------------------- attention

    /// the exports of a block at the positions from `from` to the claimed one: key, its scale, value, hidden state
    function context(uint256 from) internal {
        masks[1] = 15 << 2;
        for (uint256 j = from; j < claim.row; j++) {
            exportTensor(claim.layer, j, vector(192, 7), I8);
            exportTensor(claim.layer, j, scales(3, -9), I32);
            exportTensor(claim.layer, j, vector(192, 15), I16);
            exportTensor(claim.layer, j, vector(1, 15), I32);
        }
        tensor(vector(192, 7), I8);
        tensor(scales(3, -9), I32);
        tensor(vector(192, 15), I16);
        tensor(vector(1, 15), I32);
    }

    function test_scores() public {
        d.operands[0] = operand(OP, I8, tensor(vector(576, 7), I8));
        d.operands[1] = operand(OP, I32, tensor(scales(9, -9), I32));
        context(claim.row - 1);
        d.operands[2] = operand(CACHE, I8, 0);
        d.operands[3] = operand(CACHE, I32, 1);
        d.opcode = 13;
        d.dtype = 2;
        d.outer = 9;
        d.div = 1;
        d.p = [int32(64), 3, 0, 0];
        uint256 n = claim.row + 1;
        expected = vector(9 * n, 20);
        measure("SCORES", 5 * n - 2, readScores);
    }

    function readScores(uint256 i) internal {
        uint256 n = claim.row + 1;
        readOp(0, i / n * 64, 64, I8);
        readOp(1, i / n * 2, 2, I32);
        readCache(0, i % n, 1, i / n / 3 * 64, 64, I8);
        readCache(1, i % n, 1, i / n / 3 * 2, 2, I32);
    }

    function mix(string memory name) internal {
        uint256 n = claim.row + 1;
        d.operands[0] = operand(OP, U16, tensor(magnitudes(9 * n, 9), U16));
        ops.push("not read");
        descriptors.push(new bytes(64));
        // A whole block of sixteen, the last one.
        context(claim.row - 15);
        d.operands[1] = operand(CACHE, I16, 2);
        d.opcode = 18;
        d.dtype = 2;
        d.div = 16;
        d.inner = 576;
        d.p = [int32(64), 3, 16, 0];
        expected = vector((n + 15) / 16 * 576, 28);
        measure(name, n / 16 * 576 - 276, readMix);
    }

    function readMix(uint256 i) internal {
        uint256 n = claim.row + 1;
        (uint256 b, uint256 h) = (i / 576, i % 576 / 64);
        readOp(0, h * n + 16 * b, 16, U16);
        readCache(2, 16 * b, 16, h / 3 * 64 + i % 64, 1, I16);
        readOp(claim.op, i - 576, 1, I32);
    }

    function test_mix() public {
        claim.row = 111;
        mix("MIX at 112");
    }

    function rowMax(string memory name, uint256 size) internal {
        uint256 n = claim.row + 1;
        sizeK = size;
        d.operands[0] = operand(OP, I32, tensor(vector(9 * n, 20), I32));
        d.opcode = 14;
        d.dtype = 2;
        d.div = uint32(size);
        d.inner = 9;
        d.p[0] = int32(int256(size));
        expected = vector(n / size * 9, 20);
        measure(name, n / size * 9 - 3, readReduction);
    }

    function readReduction(uint256 i) internal {
        readOp(0, i % 9 * (claim.row + 1) + i / 9 * sizeK, sizeK, I32);
        if (i >= 9) readOp(claim.op, i - 9, 1, I32);
    }

    function test_row_max() public {
        nIn = 2048;
        delete tokens;
        claim.row = 2047;
        rowMax("ROW_MAX 1024", 1024);
    }

    function test_exp() public {
        uint256 n = claim.row + 1;
        d.operands[0] = operand(OP, I32, tensor(new int256[](9 * n), I32));
        d.operands[1] = operand(OP, I32, tensor(new int256[](9), I32));
        d.operands[2] = operand(TABLE, U16, 0);
        expTable();
        for (uint256 i; i < 64; i++) {
            tables.push("a table");
        }
        d.opcode = 15;
        d.dtype = 3;
        d.outer = 9;
        d.div = 1;
        d.p[0] = 9;
        expected = magnitudes(9 * n, 15);
        measure("EXP", 5 * n, readExp);
    }

    function readExp(uint256 i) internal {
        readOp(0, i, 1, I32);
        readOp(1, i / (claim.row + 1), 1, I32);
        readTable(0, 0, 2, U16);
    }

    function test_select() public {
        claim.layer = 31;
        claim.row = 3;
        tokens[nIn + 3] = 12345;
        d.operands[0] = operand(OP, I32, tensor(vector(49152, 20), I32));
        d.operands[1] = operand(TOKEN, 0, 1);
        d.opcode = 21;
        d.dtype = 2;
        d.p[0] = 49152;
        expected = list(12345);
        hint = 33333;
        measure("SELECT", 0, readSelect);
    }

    function readSelect(uint256) internal {
        readToken(nIn + 3);
        readOp(0, 12345, 1, I32);
        readOp(0, hint, 1, I32);
    }

    // ----------------------------------------------------------------------------------------------------- sampling

    uint256 internal constant VOCAB = 49152;
    uint256 internal constant GROUP = 2048;

    int256 internal constant LARGEST = 3 << 15;

    /// the logits, and behind them the largest. They are sums of three even variates, two units wide about zero.
    function logits() internal {
        claim.layer = 31;
        claim.row = 3;
        int256[] memory z = new int256[](VOCAB);
        for (uint256 i; i < VOCAB; i++) {
            uint256 x = uint256(keccak256(abi.encode(i)));
            z[i] = int256(uint256(uint16(x)) + uint16(x >> 16) + uint16(x >> 32)) - LARGEST;
        }
        z[1] = LARGEST;
        d.operands[0] = operand(OP, I32, tensor(z, I32));
        d.operands[1] = operand(OP, I32, tensor(list(LARGEST), I32));
        d.dtype = 2;
    }

    function test_max() public {
        logits();
        d.operands[1] = 0;
        d.opcode = 27;
        d.outer = uint32(VOCAB / GROUP);
        d.p[0] = int32(int256(GROUP));
        expected = vector(VOCAB / GROUP, 20);
        measure("MAX 2048", 7, readMax);
    }

    function readMax(uint256 i) internal {
        readOp(0, GROUP * i, GROUP, I32);
    }

    function histogram(string memory name, bool masses, uint256 shift, uint256 bin) internal {
        logits();
        d.opcode = 28;
        d.outer = 256;
        d.inner = uint32(VOCAB / GROUP);
        d.p = [int32(int256(GROUP)), masses ? int32(1) : int32(0), int32(int256(shift)), 0];
        if (masses) {
            d.operands[2] = operand(TABLE, U16, 0);
            expTable();
            for (uint256 i; i < 64; i++) {
                tables.push("a table");
            }
        }
        expected = vector(256 * VOCAB / GROUP, 20);
        measure(name, bin * (VOCAB / GROUP) + 7, readHistogram);
    }

    function readHistogram(uint256 i) internal {
        readOp(0, i % (VOCAB / GROUP) * GROUP, GROUP, I32);
        readOp(1, 0, 1, I32);
        if (d.p[1] == 1) readTable(0, 0, 257, U16);
    }

    function test_histogram_of_tokens() public {
        histogram("HISTOGRAM 2048 tokens", false, 10, 96);
    }

    function test_histogram_of_mass() public {
        // the fullest bin
        histogram("HISTOGRAM 2048 mass", true, 10, 96);
    }

    /// The dearest there can be: every token in one bin.
    function test_histogram_of_mass_in_one_bin() public {
        histogram("HISTOGRAM 2048 mass in one bin", true, 20, 0);
    }

    function test_sample() public {
        sampling = 4096;
        logits();
        d.operands[2] = d.operands[1];
        d.operands[1] = operand(TOKEN, 0, 1);
        d.operands[3] = operand(TABLE, I32, 0);
        tables.push(encode(vector(8193, 19), I32));
        tokens[nIn + 3] = 12345;
        d.opcode = 32;
        d.p[0] = int32(int256(VOCAB));
        expected = list(12345);
        hint = 33333;
        measure("SAMPLE", 0, readSample);
    }

    function readSample(uint256) internal {
        readToken(nIn + 3);
        readOp(0, 12345, 1, I32);
        readOp(0, hint, 1, I32);
        readOp(1, 0, 1, I32);
        uint32[2] memory both = [12345, hint];
        for (uint256 i; i < 2; i++) {
            (uint256 n,) = Naive.noisePlace(Naive.noiseWord(seed, position(), both[i]));
            readTable(0, n, 2, I32);
        }
    }

    // -------------------------------------------------------------------------------------------- log-probabilities

    function test_top() public {
        logits();
        d.operands[1] = 0;
        d.opcode = 33;
        d.inner = 20;
        d.p[0] = int32(int256(VOCAB));
        expected = new int256[](20);
        (expected[18], expected[19]) = (12345, 33333);
        hint = 44444;
        measure("TOP", 19, readTop);
    }

    function readTop(uint256) internal {
        readOp(claim.op, 18, 1, I32);
        readOp(0, 33333, 1, I32);
        readOp(0, 12345, 1, I32);
        readOp(0, hint, 1, I32);
    }

    /// Every token counts: the dearest there can be.
    function test_mass() public {
        logits();
        d.operands[2] = operand(TABLE, U16, 0);
        expTable();
        for (uint256 i; i < 64; i++) {
            tables.push("a table");
        }
        d.opcode = 34;
        d.outer = uint32(VOCAB / 512);
        d.p[0] = 512;
        expected = vector(VOCAB / 512, 20);
        measure("MASS 512", 7, readMass);
    }

    function readMass(uint256 i) internal {
        readOp(0, 512 * i, 512, I32);
        readOp(1, 0, 1, I32);
        readTable(0, 0, 257, U16);
    }

    function test_log_sum() public {
        logits();
        d.operands[0] = d.operands[1];
        int256[] memory masses = new int256[](VOCAB / 512);
        for (uint256 i; i < VOCAB / 512; i++) {
            masses[i] = 1 << 21;
        }
        d.operands[1] = operand(OP, I32, tensor(masses, I32));
        d.operands[2] = operand(TABLE, U16, 0);
        expTable();
        for (uint256 i; i < 64; i++) {
            tables.push("a table");
        }
        d.opcode = 35;
        d.p[0] = int32(int256(VOCAB / 512));
        expected = list(1);
        measure("LOG_SUM of 96 groups", 0, readLogSum);
    }

    function readLogSum(uint256) internal {
        readOp(1, 0, 1, I32);
        readOp(2, 0, VOCAB / 512, I32);
        // 96 is 2^6 and a half of that.
        readTable(0, 128, 2, U16);
    }

    function test_log_prob() public {
        logits();
        d.operands[2] = operand(OP, I32, tensor(vector(20, 15), I32));
        d.operands[3] = operand(OP, I32, tensor(list(12345), I32));
        d.opcode = 36;
        d.inner = 21;
        d.p[0] = int32(int256(VOCAB));
        expected = vector(21, 20);
        measure("LOG_PROB", 0, readLogProb);
    }

    function readLogProb(uint256) internal {
        readOp(1, 0, 1, I32);
        readOp(3, 0, 1, I32);
        readOp(0, 12345, 1, I32);
    }
}
