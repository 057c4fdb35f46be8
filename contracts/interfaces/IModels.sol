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

interface IModels {
    event ModelRegistered(bytes32 indexed modelId, address indexed publisher, bytes manifest, bytes program, string hint);

    /// @param manifest the packed manifest, @param program all descriptors of the three sections, concatenated
    function register(bytes calldata manifest, bytes calldata program, string calldata hint)
        external
        returns (bytes32 modelId);
    function exists(bytes32 modelId) external view returns (bool);
    function publisher(bytes32 modelId) external view returns (address);
    function shape(bytes32 modelId) external view returns (ModelShape memory);
    function stopTokens(bytes32 modelId) external view returns (uint32[] memory);
}
