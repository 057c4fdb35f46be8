// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";
import {Models} from "../contracts/Models.sol";
import {IModels, ModelShape} from "../contracts/interfaces/IModels.sol";
import {NaiveTree} from "./support/NaiveTree.sol";
import {TinyModel} from "./support/TinyModel.sol";

contract ModelsTest is Test {
    Models internal models = new Models();
    address internal petra = makeAddr("petra, a publisher");

    // Where the manifest's fields are.
    uint256 internal constant AT_LAYERS = 2;
    uint256 internal constant AT_VOCAB = 4;
    uint256 internal constant AT_POSITIONS = 8;
    uint256 internal constant AT_OPS = 12;
    uint256 internal constant AT_ROOTS = 18;
    uint256 internal constant AT_WEIGHTS = 114;
    uint256 internal constant AT_TABLES = 150;
    uint256 internal constant AT_STOPS = 250;

    function patched(bytes memory data, uint256 at, bytes memory with) internal pure returns (bytes memory) {
        for (uint256 i; i < with.length; i++) {
            data[at + i] = with[i];
        }
        return data;
    }

    /// The tiny model with other operators, and the roots that follow.
    function build(bytes[] memory embed, bytes[] memory blocks, bytes[] memory head, bytes memory manifest)
        internal
        pure
        returns (bytes memory, bytes memory program)
    {
        bytes[][3] memory sections = [embed, blocks, head];
        for (uint256 s; s < 3; s++) {
            bytes32[] memory leaves = new bytes32[](sections[s].length);
            for (uint256 i; i < leaves.length; i++) {
                leaves[i] = keccak256(bytes.concat(hex"06", sections[s][i]));
                program = bytes.concat(program, sections[s][i]);
            }
            manifest = patched(manifest, AT_OPS + 2 * s, abi.encodePacked(uint16(leaves.length)));
            manifest = patched(manifest, AT_ROOTS + 32 * s, abi.encodePacked(NaiveTree.root(leaves)));
        }
        return (manifest, program);
    }

    function withBlock(bytes[] memory blocks) internal pure returns (bytes memory, bytes memory) {
        return build(TinyModel.section(0), blocks, TinyModel.section(2), TinyModel.manifest());
    }

    function register(bytes memory manifest, bytes memory program) internal returns (bytes32) {
        vm.prank(petra);
        return models.register(manifest, program, "ipfs://hint");
    }

    /// A model samples if its head exports a SAMPLE; one in a block or one that is not exported makes none.
    function test_samples() public {
        assertFalse(models.samples(register(TinyModel.manifest(), TinyModel.program())));
        bytes[] memory head = TinyModel.section(2);
        head[1] = patched(head[1], 0, hex"20");
        assertTrue(registered(TinyModel.section(1), head));
        head[1] = patched(head[1], 2, hex"00");
        assertFalse(registered(TinyModel.section(1), head));
        bytes[] memory blocks = TinyModel.section(1);
        blocks[2] = patched(blocks[2], 0, hex"20");
        assertFalse(registered(blocks, TinyModel.section(2)));
        vm.expectRevert(abi.encodeWithSelector(IModels.UnknownModel.selector, bytes32("?")));
        models.samples("?");
    }

    function registered(bytes[] memory blocks, bytes[] memory head) internal returns (bool) {
        (bytes memory manifest, bytes memory program) = build(TinyModel.section(0), blocks, head, TinyModel.manifest());
        return models.samples(register(manifest, program));
    }

    // ------------------------------------------------------------------------------------------------- register

    function test_register() public {
        bytes memory manifest = TinyModel.manifest();
        bytes32 expected = keccak256(bytes.concat(hex"07", manifest));
        vm.expectEmit();
        emit IModels.ModelRegistered(expected, petra, manifest, TinyModel.program(), "ipfs://hint");
        bytes32 modelId = register(manifest, TinyModel.program());
        assertEq(modelId, expected);
        assertTrue(models.exists(modelId));
        assertEq(models.publisher(modelId), petra);

        ModelShape memory s = models.shape(modelId);
        assertEq(s.layers, 2);
        assertEq(s.vocab, 1000);
        assertEq(s.maxPositions, 128);
        uint8[3] memory masks = [1, 5, 3];
        uint8[3] memory counts = [1, 3, 2];
        for (uint8 i; i < 3; i++) {
            assertEq(s.opCounts[i], counts[i]);
            assertEq(s.exportMasks[i], masks[i]);
            assertEq(s.sectionRoots[i], NaiveTree.root(TinyModel.descriptorLeaves(i)));
            (uint16 ops, uint256 mask, bytes32 root) = models.section(modelId, i);
            assertEq(ops, counts[i]);
            assertEq(mask, masks[i]);
            assertEq(root, s.sectionRoots[i]);
        }
        assertEq(s.weights, 1);
        assertEq(s.weightsRoot, keccak256("weights"));
        assertEq(s.tables, 1);
        assertEq(s.tablesRoot, keccak256("tables"));
        (uint16 layers, uint32 vocab, uint32 maxPositions) = models.dimensions(modelId);
        assertEq(abi.encode(layers, vocab, maxPositions), abi.encode(2, 1000, 128));
        uint32[] memory stops = models.stopTokens(modelId);
        assertEq(stops.length, 1);
        assertEq(stops[0], 7);
        // Four layers: one answer. 128 positions: two. The list. 128 pages of scores: two. The page.
        assertEq(models.challengeDepth(modelId), 7);
    }

    function test_register_noStops() public {
        bytes memory manifest = patched(TinyModel.manifest(), AT_STOPS, hex"00");
        assembly {
            mstore(manifest, 251) // cuts the stop token off
        }
        bytes32 modelId = register(manifest, TinyModel.program());
        assertEq(models.stopTokens(modelId).length, 0);
    }

    function test_register_twice() public {
        bytes32 modelId = register(TinyModel.manifest(), TinyModel.program());
        vm.expectRevert(abi.encodeWithSelector(IModels.ModelExists.selector, modelId));
        models.register(TinyModel.manifest(), TinyModel.program(), "mine");
    }

    // ------------------------------------------------------------------------------------------------- manifest

    function test_register_manifestLength() public {
        bytes memory program = TinyModel.program();
        bytes memory whole = TinyModel.manifest();
        for (uint256 n; n < whole.length; n += 17) {
            bytes memory cut = new bytes(n);
            for (uint256 i; i < n; i++) {
                cut[i] = whole[i];
            }
            vm.expectRevert(
                abi.encodeWithSelector(IModels.ManifestLength.selector, n, n <= AT_STOPS ? AT_STOPS + 1 : whole.length)
            );
            models.register(cut, program, "");
        }
        vm.expectRevert(abi.encodeWithSelector(IModels.ManifestLength.selector, whole.length + 1, whole.length));
        models.register(bytes.concat(whole, hex"00"), program, "");
    }

    function test_register_version() public {
        vm.expectRevert(abi.encodeWithSelector(IModels.IsaVersion.selector, 2, 1));
        models.register(patched(TinyModel.manifest(), 0, hex"0002"), TinyModel.program(), "");
    }

    function expectField(string memory field, uint256 at, bytes memory with, uint256 actual, uint256 min, uint256 max)
        internal
    {
        vm.expectRevert(abi.encodeWithSelector(IModels.FieldOutOfRange.selector, field, actual, min, max));
        models.register(patched(TinyModel.manifest(), at, with), TinyModel.program(), "");
    }

    function test_register_fields() public {
        expectField("layers", AT_LAYERS, hex"0000", 0, 1, 65534);
        expectField("layers", AT_LAYERS, hex"ffff", 65535, 1, 65534);
        expectField("vocab", AT_VOCAB, hex"00000000", 0, 1, type(uint32).max);
        expectField("maxPositions", AT_POSITIONS, hex"00000000", 0, 1, type(uint32).max);
        expectField("embedOps", AT_OPS, hex"0000", 0, 1, 96);
        expectField("blockOps", AT_OPS + 2, hex"0061", 97, 1, 96);
        expectField("headOps", AT_OPS + 4, hex"0000", 0, 1, 96);
    }

    function test_register_stops() public {
        bytes memory many = bytes.concat(patched(TinyModel.manifest(), AT_STOPS, hex"11"), new bytes(64));
        vm.expectRevert(abi.encodeWithSelector(IModels.FieldOutOfRange.selector, "stops", 17, 0, 16));
        models.register(many, TinyModel.program(), "");
        vm.expectRevert(abi.encodeWithSelector(IModels.StopTokenOutOfVocabulary.selector, 0, 1000, 1000));
        models.register(
            patched(TinyModel.manifest(), AT_STOPS + 1, abi.encodePacked(uint32(1000))), TinyModel.program(), ""
        );
    }

    // -------------------------------------------------------------------------------------------------- program

    function test_register_programLength() public {
        vm.expectRevert(abi.encodeWithSelector(IModels.ProgramLength.selector, 385, 384));
        models.register(TinyModel.manifest(), bytes.concat(TinyModel.program(), hex"00"), "");
        vm.expectRevert(abi.encodeWithSelector(IModels.ProgramLength.selector, 0, 384));
        models.register(TinyModel.manifest(), "", "");
    }

    /// Parameters are no field the registry looks at, but the root covers them.
    function testFuzz_register_sectionRoot(uint256 op, uint256 bit) public {
        op = bound(op, 0, 5);
        bit = bound(bit, 0, 127);
        bytes memory program = TinyModel.program();
        program[64 * op + 16 + bit / 8] ^= bytes1(uint8(1 << (bit % 8)));
        uint8 section = op == 0 ? 0 : op < 4 ? 1 : 2;
        vm.expectPartialRevert(IModels.SectionRoot.selector);
        models.register(TinyModel.manifest(), program, "");
        program[64 * op + 16 + bit / 8] ^= bytes1(uint8(1 << (bit % 8)));
        bytes32 root = NaiveTree.root(TinyModel.descriptorLeaves(section));
        bytes memory manifest = patched(TinyModel.manifest(), AT_ROOTS + 32 * section, abi.encodePacked(~root));
        vm.expectRevert(abi.encodeWithSelector(IModels.SectionRoot.selector, section, root, ~root));
        models.register(manifest, program, "");
    }

    function test_register_noExports() public {
        for (uint8 s; s < 3; s++) {
            bytes[][3] memory sections = [TinyModel.section(0), TinyModel.section(1), TinyModel.section(2)];
            for (uint256 i; i < sections[s].length; i++) {
                sections[s][i][2] = 0;
            }
            (bytes memory manifest, bytes memory program) =
                build(sections[0], sections[1], sections[2], TinyModel.manifest());
            vm.expectRevert(abi.encodeWithSelector(IModels.NoExports.selector, s));
            models.register(manifest, program, "");
        }
    }

    /// Sets bytes of one descriptor and expects it to be refused.
    function expectBad(
        uint8 section,
        uint16 op,
        uint256 at,
        bytes memory with,
        string memory field,
        uint256 a,
        uint256 l
    ) internal {
        bytes[][3] memory sections = [TinyModel.section(0), TinyModel.section(1), TinyModel.section(2)];
        sections[section][op] = patched(sections[section][op], at, with);
        (bytes memory manifest, bytes memory program) =
            build(sections[0], sections[1], sections[2], TinyModel.manifest());
        vm.expectRevert(abi.encodeWithSelector(IModels.BadDescriptor.selector, section, op, field, a, l));
        models.register(manifest, program, "");
    }

    function test_register_badHead() public {
        expectBad(1, 0, 0, hex"00", "opcode", 0, 37);
        expectBad(2, 1, 0, hex"25", "opcode", 37, 37);
        expectBad(0, 0, 1, hex"04", "element type", 4, 4);
        expectBad(1, 2, 2, hex"02", "flags", 2, 2);
        expectBad(1, 2, 4, hex"00000000", "shape", 0, 0);
        expectBad(1, 2, 12, hex"00000000", "shape", 0, 0);
        // 2^32 - 1 times 300 elements of four bytes
        expectBad(1, 2, 4, hex"ffffffff", "shape", uint256(type(uint32).max) * 1200, uint256(type(uint32).max) + 1);
    }

    function test_register_badOperand() public {
        // kind, flags, stride u16, index u32 from offset 32
        expectBad(1, 0, 32, hex"07", "operand kind", 7, 7);
        expectBad(1, 0, 33, hex"08", "operand flags", 8, 8);
        expectBad(1, 0, 33, hex"01", "tail operand", 2, 1);
        expectBad(1, 1, 33, hex"01", "tail stride", 0, 0);
        // an operator reads earlier ones only
        expectBad(1, 1, 36, hex"00000001", "operand index", 1, 1);
        expectBad(1, 0, 32, hex"01", "operand index", 0, 0);
        // the embedding exports one tensor, so a block can read one
        expectBad(1, 0, 36, hex"00000001", "operand index", 1, 1);
        // nothing comes before the embedding
        expectBad(0, 0, 32, hex"02", "operand index", 0, 0);
        // a block has two exports to cache
        expectBad(1, 1, 44, hex"00000002", "operand index", 2, 2);
        // the head has no rows at all positions
        expectBad(2, 0, 32, hex"03", "operand index", 0, 0);
        // the tokens end one after the last position
        expectBad(2, 1, 44, hex"00000002", "operand index", 2, 2);
        // one weight, one table
        expectBad(0, 0, 44, hex"00000001", "operand index", 1, 1);
        expectBad(1, 0, 32, hex"0500000000000001", "operand index", 1, 1);
        expectBad(1, 0, 32, hex"0400000100000000", "operand index", 1, 1);
        expectBad(0, 0, 42, hex"0001", "operand stride", 1, 1);
    }

    /// With one layer, a block follows the embedding only, however little it exports itself.
    function test_register_previousExports() public {
        bytes[] memory embed = new bytes[](2);
        embed[0] = TinyModel.embed();
        embed[1] = TinyModel.embed();
        bytes[] memory blocks = new bytes[](1);
        blocks[0] = TinyModel.add(true, TinyModel.operand(2, 1), TinyModel.operand(2, 0));
        (bytes memory manifest, bytes memory program) = build(embed, blocks, TinyModel.section(2), TinyModel.manifest());
        vm.expectRevert(abi.encodeWithSelector(IModels.BadDescriptor.selector, 1, 0, "operand index", 1, 1));
        models.register(manifest, program, "");
        assertTrue(models.exists(register(patched(manifest, AT_LAYERS, hex"0001"), program)));
    }

    /// Strided weights are counted at the last layer.
    function test_register_stride() public {
        bytes[] memory blocks = TinyModel.section(1);
        blocks[0] = patched(blocks[0], 32, hex"0400000300000001");
        (bytes memory manifest, bytes memory program) = withBlock(blocks);
        manifest = patched(manifest, AT_WEIGHTS, hex"00000004");
        vm.expectRevert(abi.encodeWithSelector(IModels.BadDescriptor.selector, 1, 0, "operand index", 4, 4));
        models.register(manifest, program, "");
        assertTrue(models.exists(register(patched(manifest, AT_WEIGHTS, hex"00000005"), program)));
    }

    // ---------------------------------------------------------------------------------------------------- depth

    function depthWith(bytes memory layers, bytes memory positions, bytes memory outer) internal returns (uint8) {
        bytes[] memory blocks = TinyModel.section(1);
        blocks[1] = patched(blocks[1], 8, hex"00000000"); // does not grow
        blocks[2] = patched(blocks[2], 4, outer);
        (bytes memory manifest, bytes memory program) = withBlock(blocks);
        manifest = patched(manifest, AT_LAYERS, layers);
        manifest = patched(manifest, AT_POSITIONS, positions);
        return models.challengeDepth(register(manifest, program));
    }

    function test_register_depth() public {
        // 62 layers and both ends: one answer; positions up to 64, 4096 and above: one, two, three
        assertEq(depthWith(hex"003e", hex"00000040", hex"00000001"), 5);
        assertEq(depthWith(hex"003f", hex"00000040", hex"00000001"), 6);
        assertEq(depthWith(hex"003e", hex"00000041", hex"00000001"), 6);
        assertEq(depthWith(hex"003e", hex"00001001", hex"00000001"), 7);
        // no job runs more than 8192
        assertEq(depthWith(hex"003e", hex"ffffffff", hex"00000001"), 7);
        // 3495 times 300 elements of four bytes: 4096 pages
        assertEq(depthWith(hex"003e", hex"ffffffff", hex"00000da7"), 8);
    }

    function test_register_tooDeep() public {
        bytes[] memory blocks = TinyModel.section(1);
        blocks[2] = patched(blocks[2], 4, hex"00000da8");
        (bytes memory manifest, bytes memory program) = withBlock(blocks);
        manifest = patched(manifest, AT_POSITIONS, hex"00002000");
        vm.expectRevert(abi.encodeWithSelector(IModels.TooDeep.selector, 9, 8));
        models.register(manifest, program, "");
    }

    // ---------------------------------------------------------------------------------------------------- views

    function test_unknownModel() public {
        bytes memory error_ = abi.encodeWithSelector(IModels.UnknownModel.selector, bytes32(uint256(1)));
        assertFalse(models.exists(bytes32(uint256(1))));
        assertEq(models.publisher(bytes32(uint256(1))), address(0));
        vm.expectRevert(error_);
        models.shape(bytes32(uint256(1)));
        vm.expectRevert(error_);
        models.stopTokens(bytes32(uint256(1)));
        vm.expectRevert(error_);
        models.dimensions(bytes32(uint256(1)));
        vm.expectRevert(error_);
        models.section(bytes32(uint256(1)), 0);
        vm.expectRevert(error_);
        models.challengeDepth(bytes32(uint256(1)));
    }

    function test_unknownSection() public {
        bytes32 modelId = register(TinyModel.manifest(), TinyModel.program());
        vm.expectRevert(abi.encodeWithSelector(IModels.UnknownSection.selector, 3));
        models.section(modelId, 3);
    }
}
