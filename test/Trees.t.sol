// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";
import {Trees} from "../contracts/lib/Trees.sol";

contract TreesTest is Test {
    function test_depth() public pure {
        assertEq(Trees.depth(1), 0);
        assertEq(Trees.depth(5), 3);
    }
}
