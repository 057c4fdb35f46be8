// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Test} from "forge-std/Test.sol";

/// @notice What a campaign of random steps counts: steps that did what they are for, steps in whose place another was done, and steps that did
/// nothing.
abstract contract Steps is Test {
    /// nothing was done
    uint256 public idle;
    /// something was done
    uint256 public busy;
    /// of these, another step than the one that was drawn
    uint256 public instead;
    mapping(bytes32 step => uint256) public count;

    /// Counts a step by what came of it.
    modifier step(bytes32 name) {
        (uint256 idleBefore, uint256 insteadBefore) = (idle, instead);
        _;
        if (idle != idleBefore) return;
        busy++;
        if (instead == insteadBefore) count[name]++;
    }

    function did(bytes32 name) internal returns (bool) {
        count[name]++;
        return true;
    }

    /// @notice that most steps did something; a sequence too short to tell passes
    function assertBusy() external view {
        if (idle + busy > 20) assertLe(10 * idle, idle + busy, "more than a tenth of the steps did nothing");
    }

    /// @notice that most steps did what they are for
    function assertOfTheirOwn() external view {
        assertGt(busy - instead, instead + idle, "most steps did nothing of their own");
    }
}
