// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

/// @title ITrees
/// @notice The errors of the Merkle library, which every contract that checks a proof may revert with.
interface ITrees {
    /// @notice A proof that ends too early or goes on after its last step.
    /// @param actual hashes given
    /// @param expected hashes that the shape calls for
    error ProofLength(uint256 actual, uint256 expected);
    /// @notice Leaves [first, first + count) do not all lie in a tree of `leafCount`.
    error OutsideTree(uint256 first, uint256 count, uint256 leafCount);
    /// @notice Page data that is not as long as the tensor's shape says.
    error DataLength(uint256 actual, uint256 expected);
    /// @notice A tree or a sequence without a leaf does not exist.
    error NoLeaves();
}
