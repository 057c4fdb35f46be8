// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

/// @notice What a verifier must know of a model. Sections: 0 embedding, 1 block, 2 head.
struct ModelShape {
    uint16 layers;
    uint32 vocab;
    uint32 maxPositions;
    uint16[3] opCounts;
    bytes32[3] sectionRoots;
    /// bit k set: operator k is exported
    uint256[3] exportMasks;
    uint32 weights;
    bytes32 weightsRoot;
    uint32 tables;
    bytes32 tablesRoot;
}

/// @title IModels
/// @notice Models by content: `modelId` is the hash of the manifest, so whoever holds an id can check every byte. Anybody
/// may register any model; being registered says that it is well formed and can be challenged within the protocol's depth,
/// not that it is good. Nobody can change or remove one.
interface IModels {
    /// @notice A model was registered.
    /// @param manifest the packed manifest, @param program all descriptors, concatenated
    /// @param hint where the files may be found; nothing depends on it
    event ModelRegistered(
        bytes32 indexed modelId, address indexed publisher, bytes manifest, bytes program, string hint
    );

    /// @notice The model is already registered; its id needs no second registration.
    error ModelExists(bytes32 modelId);
    /// @notice No model has this id; register it first.
    error UnknownModel(bytes32 modelId);
    /// @notice Only sections 0 (embedding), 1 (block) and 2 (head) exist.
    error UnknownSection(uint8 section);
    /// @notice The manifest is not as long as its stop-token count says.
    error ManifestLength(uint256 actual, uint256 expected);
    /// @notice The manifest is for another version of the instruction set.
    error IsaVersion(uint16 actual, uint16 expected);
    /// @notice A manifest field is outside what the protocol admits.
    /// @param field the field's name in docs/protocol.md
    error FieldOutOfRange(string field, uint256 actual, uint256 min, uint256 max);
    /// @notice A stop token is not in the vocabulary.
    error StopTokenOutOfVocabulary(uint256 index, uint32 token, uint32 vocab);
    /// @notice The program is not 64 bytes per operator of the manifest.
    error ProgramLength(uint256 actual, uint256 expected);
    /// @notice The descriptors of a section do not have the root the manifest names.
    error SectionRoot(uint8 section, bytes32 actual, bytes32 expected);
    /// @notice A section exports nothing, so no position's leaf would bind it.
    error NoExports(uint8 section);
    /// @notice A descriptor names what does not exist: an opcode, an element type, a tensor, a weight, a table, a token.
    /// @param field which of the descriptor's fields, as named in docs/instruction-set.md
    error BadDescriptor(uint8 section, uint16 op, string field, uint256 actual, uint256 limit);
    /// @notice A challenge could need more openings than the protocol admits.
    error TooDeep(uint256 answers, uint256 limit);

    /// @notice Registers a model.
    /// @dev Section roots, export masks and operator counts are computed from `program` and compared with the manifest.
    /// @param manifest the packed manifest of docs/protocol.md
    /// @param program all descriptors of the three sections, concatenated
    /// @param hint where the files may be found; emitted only
    /// @return modelId the manifest's hash
    function register(bytes calldata manifest, bytes calldata program, string calldata hint)
        external
        returns (bytes32 modelId);

    /// @notice Whether the model is registered.
    function exists(bytes32 modelId) external view returns (bool);

    /// @notice Who registered the model first; no right follows from it.
    function publisher(bytes32 modelId) external view returns (address);

    /// @notice All a verifier needs. Reverts for an unknown model.
    function shape(bytes32 modelId) external view returns (ModelShape memory);

    /// @notice The token ids that end an answer.
    function stopTokens(bytes32 modelId) external view returns (uint32[] memory);

    /// @notice The part of `shape` that a job needs. Reverts for an unknown model.
    function dimensions(bytes32 modelId) external view returns (uint16 layers, uint32 vocab, uint32 maxPositions);

    /// @notice Whether the head exports a SAMPLE, so that jobs may have sampling parameters. Reverts for an unknown model.
    function samples(bytes32 modelId) external view returns (bool);

    /// @notice The part of `shape` that an opening needs. Reverts for an unknown model or section.
    /// @param which 0 embedding, 1 block, 2 head
    function section(bytes32 modelId, uint8 which)
        external
        view
        returns (uint16 opCount, uint256 exportMask, bytes32 root);

    /// @notice How many answers the deepest challenge of this model takes, at most 8.
    /// @dev ⌈depth/6⌉ for the layers, the positions and the pages of the largest tensor, one for the operator list, one
    /// for the page.
    function challengeDepth(bytes32 modelId) external view returns (uint8);
}
