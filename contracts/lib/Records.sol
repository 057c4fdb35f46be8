// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

/// @title Records
/// @notice Data that never changes, kept as the code of an account: a cold read costs one account and a few gas a word, a
/// tenth of what as many storage slots would.
library Records {
    /// @notice the account could not be created: out of gas
    error NotWritten();

    /// @notice a byte before the data, so that calling the account does nothing
    uint256 private constant STOP = 1;

    /// @return at the account whose code is `data`; less than 24,576 bytes
    function write(bytes memory data) internal returns (address at) {
        // PUSH2 size, DUP1, PUSH1 10, RETURNDATASIZE, CODECOPY, RETURNDATASIZE, RETURN: returns what follows it.
        bytes memory creation = abi.encodePacked(hex"61", uint16(data.length + STOP), hex"80600a3d393df300", data);
        assembly ("memory-safe") {
            at := create(0, add(creation, 32), mload(creation))
        }
        if (at == address(0)) revert NotWritten();
    }

    /// @notice word `index` of the data
    function word(address at, uint256 index) internal view returns (uint256 value) {
        assembly ("memory-safe") {
            extcodecopy(at, 0, add(STOP, shl(5, index)), 32)
            value := mload(0)
        }
    }

    /// @notice all of the data
    function read(address at) internal view returns (bytes memory data) {
        data = new bytes(at.code.length - STOP);
        assembly ("memory-safe") {
            extcodecopy(at, add(data, 32), STOP, mload(data))
        }
    }
}
