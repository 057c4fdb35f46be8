// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title DevToken
/// @notice The payment token of devnets and tests. Anybody mints any amount, so it is worth nothing: a deployment with
/// money at stake names its own ERC-20.
contract DevToken is ERC20Permit {
    constructor() ERC20("Sworn Dev Token", "SWD") ERC20Permit("Sworn Dev Token") {}

    /// @notice The faucet.
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }
}
