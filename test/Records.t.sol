// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";
import {Records} from "../contracts/lib/Records.sol";

contract RecordsTest is Test {
    function write(bytes memory data) external returns (address) {
        return Records.write(data);
    }

    function testFuzz_roundTrip(bytes32[] memory words, bytes memory tail) public {
        bytes memory data = abi.encodePacked(words, tail);
        address at = Records.write(data);
        assertEq(Records.read(at), data);
        for (uint256 i; i < words.length; i++) {
            assertEq(Records.word(at, i), uint256(words[i]));
        }
        (bool ok, bytes memory result) = at.call(data);
        assertTrue(ok);
        assertEq(result.length, 0);
    }

    /// Writing costs 200 gas a byte; with less, nothing is written and that is said.
    function test_outOfGas() public {
        bytes memory data = new bytes(10_000);
        vm.expectRevert(Records.NotWritten.selector);
        this.write{gas: 1_000_000}(data);
        assertEq(Records.read(this.write{gas: 3_000_000}(data)), data);
    }
}
