// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IModels, ModelShape} from "./interfaces/IModels.sol";
import {Descriptor} from "./lib/Descriptor.sol";
import {Programs} from "./lib/Programs.sol";
import {Records} from "./lib/Records.sol";
import {Trees} from "./lib/Trees.sol";

/// @title Models
/// @notice See IModels.
contract Models is IModels {
    /// @notice the instruction set this deployment can judge
    uint16 public constant ISA_VERSION = 1;
    /// @notice the instruction set's proofs of range hold for positions below this
    uint32 public constant MAX_POSITIONS = Programs.MAX_POSITIONS;
    /// @notice operators of a section; an operator list is answered in one piece
    uint16 public constant MAX_OPS = 96;
    /// @notice every token of an answer is compared with every stop token
    uint8 public constant MAX_STOPS = 16;
    /// @notice answers of the deepest challenge
    uint8 public constant MAX_DEPTH = Programs.MAX_DEPTH;
    /// @notice levels that one answer opens
    uint8 public constant LEVELS_PER_ANSWER = Programs.LEVELS_PER_ANSWER;

    // The packed manifest: where its fields begin.
    uint256 private constant AT_ROOTS = 18;
    uint256 private constant AT_WEIGHTS = 114;
    uint256 private constant AT_TABLES = 150;
    uint256 private constant AT_STOPS = 250;

    // The words of a record: abi.encode(shape, publisher, depth, samples, stop tokens). All of the shape is static.
    uint256 private constant WORD_OP_COUNTS = 3;
    uint256 private constant WORD_SECTION_ROOTS = 6;
    uint256 private constant WORD_EXPORT_MASKS = 9;
    uint256 private constant WORD_PUBLISHER = 16;
    uint256 private constant WORD_DEPTH = 17;
    uint256 private constant WORD_SAMPLES = 18;

    /// What is known of a model never changes, so it is kept as code.
    mapping(bytes32 modelId => address) private _records;

    // ------------------------------------------------------------------------------------------------- register

    /// @inheritdoc IModels
    function register(bytes calldata manifest, bytes calldata program, string calldata hint)
        external
        returns (bytes32 modelId)
    {
        modelId = Trees.hashTagged(Trees.TAG_MANIFEST, manifest);
        if (exists(modelId)) revert ModelExists(modelId);

        ModelShape memory s = _parse(manifest);
        uint32[] memory stops = _parseStops(manifest, s.vocab);
        (uint256 largestTensor, bool samples_) = _fold(s, program);

        uint256 depth = _answers(uint256(s.layers) + 2) + _answers(_positions(s)) + 1
            + _answers(Trees.pageCount(largestTensor)) + 1;
        if (depth > MAX_DEPTH) revert TooDeep(depth, MAX_DEPTH);

        _records[modelId] = Records.write(abi.encode(s, msg.sender, depth, samples_, stops));
        emit ModelRegistered(modelId, msg.sender, manifest, program, hint);
    }

    function _parse(bytes calldata manifest) private pure returns (ModelShape memory s) {
        if (manifest.length <= AT_STOPS) revert ManifestLength(manifest.length, AT_STOPS + 1);
        uint256 expected = AT_STOPS + 1 + 4 * uint256(uint8(manifest[AT_STOPS]));
        if (manifest.length != expected) revert ManifestLength(manifest.length, expected);

        uint16 version = _u16(manifest, 0);
        if (version != ISA_VERSION) revert IsaVersion(version, ISA_VERSION);
        s.layers = _u16(manifest, 2);
        // Layers are named by u16, and the head is layer L + 1.
        _inRange("layers", s.layers, 1, type(uint16).max - 1);
        s.vocab = _u32(manifest, 4);
        _inRange("vocab", s.vocab, 1, type(uint32).max);
        s.maxPositions = _u32(manifest, 8);
        _inRange("maxPositions", s.maxPositions, 1, type(uint32).max);
        for (uint256 i; i < 3; ++i) {
            s.opCounts[i] = _u16(manifest, 12 + 2 * i);
            s.sectionRoots[i] = _word(manifest, AT_ROOTS + 32 * i);
        }
        _inRange("embedOps", s.opCounts[0], 1, MAX_OPS);
        _inRange("blockOps", s.opCounts[1], 1, MAX_OPS);
        _inRange("headOps", s.opCounts[2], 1, MAX_OPS);
        s.weights = _u32(manifest, AT_WEIGHTS);
        s.weightsRoot = _word(manifest, AT_WEIGHTS + 4);
        s.tables = _u32(manifest, AT_TABLES);
        s.tablesRoot = _word(manifest, AT_TABLES + 4);
    }

    function _parseStops(bytes calldata manifest, uint32 vocab) private pure returns (uint32[] memory stops) {
        uint256 n = uint8(manifest[AT_STOPS]);
        _inRange("stops", n, 0, MAX_STOPS);
        stops = new uint32[](n);
        for (uint256 i; i < n; ++i) {
            uint32 stop = _u32(manifest, AT_STOPS + 1 + 4 * i);
            if (stop >= vocab) revert StopTokenOutOfVocabulary(i, stop, vocab);
            stops[i] = stop;
        }
    }

    /// Checks the three sections against the manifest and sets their export masks.
    /// @return largestTensor in bytes
    /// @return samples_ whether the head exports a SAMPLE
    function _fold(ModelShape memory s, bytes calldata program)
        private
        pure
        returns (uint256 largestTensor, bool samples_)
    {
        uint256 ops = uint256(s.opCounts[0]) + s.opCounts[1] + s.opCounts[2];
        if (program.length != ops * Descriptor.BYTES) revert ProgramLength(program.length, ops * Descriptor.BYTES);

        Programs.Bounds memory bounds = Programs.Bounds(s.layers, _positions(s), s.weights, s.tables);
        uint256 begin;
        uint256 previousExports;
        for (uint8 i; i < 3; ++i) {
            uint256 end = begin + s.opCounts[i] * Descriptor.BYTES;
            if (i == Programs.BLOCK && s.layers > 1) {
                // The first block follows the embedding, every other one a block: what it reads must be in both.
                uint256 own = _exports(program[begin:end]);
                if (own < previousExports) previousExports = own;
            }
            Programs.Section memory folded = Programs.fold(i, program[begin:end], previousExports, bounds);
            if (folded.root != s.sectionRoots[i]) revert SectionRoot(i, folded.root, s.sectionRoots[i]);
            s.exportMasks[i] = folded.exportMask;
            if (folded.largestTensor > largestTensor) largestTensor = folded.largestTensor;
            previousExports = folded.exports;
            samples_ = folded.samples;
            begin = end;
        }
    }

    /// How many operators of a section are exported.
    function _exports(bytes calldata descriptors) private pure returns (uint256 n) {
        for (uint256 at = 2; at < descriptors.length; at += Descriptor.BYTES) {
            n += uint8(descriptors[at]) & 1;
        }
    }

    /// Positions that a job of this model can run.
    function _positions(ModelShape memory s) private pure returns (uint256) {
        return s.maxPositions < MAX_POSITIONS ? s.maxPositions : MAX_POSITIONS;
    }

    /// Answers from the root of a tree to its leaves.
    function _answers(uint256 leafCount) private pure returns (uint256) {
        return (Trees.depth(leafCount) + LEVELS_PER_ANSWER - 1) / LEVELS_PER_ANSWER;
    }

    // ---------------------------------------------------------------------------------------------------- views

    /// @inheritdoc IModels
    function exists(bytes32 modelId) public view returns (bool) {
        return _records[modelId] != address(0);
    }

    /// @inheritdoc IModels
    function publisher(bytes32 modelId) external view returns (address) {
        return exists(modelId) ? address(uint160(Records.word(_records[modelId], WORD_PUBLISHER))) : address(0);
    }

    /// @inheritdoc IModels
    function shape(bytes32 modelId) external view returns (ModelShape memory) {
        return abi.decode(Records.read(_record(modelId)), (ModelShape));
    }

    /// @inheritdoc IModels
    function stopTokens(bytes32 modelId) external view returns (uint32[] memory stops) {
        (,,,, stops) = abi.decode(Records.read(_record(modelId)), (ModelShape, address, uint256, bool, uint32[]));
    }

    /// @inheritdoc IModels
    function dimensions(bytes32 modelId) external view returns (uint16 layers, uint32 vocab, uint32 maxPositions) {
        address at = _record(modelId);
        return (uint16(Records.word(at, 0)), uint32(Records.word(at, 1)), uint32(Records.word(at, 2)));
    }

    /// @inheritdoc IModels
    function samples(bytes32 modelId) external view returns (bool) {
        return Records.word(_record(modelId), WORD_SAMPLES) != 0;
    }

    /// @inheritdoc IModels
    function section(bytes32 modelId, uint8 which)
        external
        view
        returns (uint16 opCount, uint256 exportMask, bytes32 root)
    {
        address at = _record(modelId);
        if (which > Programs.HEAD) revert UnknownSection(which);
        return (
            uint16(Records.word(at, WORD_OP_COUNTS + which)),
            Records.word(at, WORD_EXPORT_MASKS + which),
            bytes32(Records.word(at, WORD_SECTION_ROOTS + which))
        );
    }

    /// @inheritdoc IModels
    function challengeDepth(bytes32 modelId) external view returns (uint8) {
        return uint8(Records.word(_record(modelId), WORD_DEPTH));
    }

    function _record(bytes32 modelId) private view returns (address at) {
        at = _records[modelId];
        if (at == address(0)) revert UnknownModel(modelId);
    }

    // -------------------------------------------------------------------------------------------------- parsing

    function _inRange(string memory field, uint256 actual, uint256 min, uint256 max) private pure {
        if (actual < min || actual > max) revert FieldOutOfRange(field, actual, min, max);
    }

    function _u16(bytes calldata data, uint256 at) private pure returns (uint16) {
        return uint16(bytes2(data[at:at + 2]));
    }

    function _u32(bytes calldata data, uint256 at) private pure returns (uint32) {
        return uint32(bytes4(data[at:at + 4]));
    }

    function _word(bytes calldata data, uint256 at) private pure returns (bytes32) {
        return bytes32(data[at:at + 32]);
    }
}
