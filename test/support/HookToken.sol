// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @notice A token that lets somebody act in the middle of every transfer.
contract HookToken is ERC20 {
    address public target;
    bytes public data;
    bool public called;
    bytes public result;

    constructor() ERC20("Hook", "HOOK") {}

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    /// @notice What the next transfer calls.
    function arm(address target_, bytes calldata data_) external {
        (target, data) = (target_, data_);
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (target == address(0)) return;
        (address t, bytes memory d) = (target, data);
        target = address(0);
        (called, result) = t.call(d);
    }
}
