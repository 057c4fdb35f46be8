// SPDX-License-Identifier: MIT OR Apache-2.0
// What Sworn uses of other people's contracts: the payment token and the errors of the libraries its contracts inherit.
pragma solidity ^0.8.28;

interface IERC20 {
    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);

    /// @notice The account holds fewer tokens than it is to pay.
    error ERC20InsufficientBalance(address sender, uint256 balance, uint256 needed);
    /// @notice The allowance does not cover the payment: approve more.
    error ERC20InsufficientAllowance(address spender, uint256 allowance, uint256 needed);
    /// @notice Tokens cannot come from this address.
    error ERC20InvalidSender(address sender);
    /// @notice Tokens cannot go to this address.
    error ERC20InvalidReceiver(address receiver);
    /// @notice This address cannot approve.
    error ERC20InvalidApprover(address approver);
    /// @notice This address cannot be approved.
    error ERC20InvalidSpender(address spender);

    function name() external view returns (string memory);
    function symbol() external view returns (string memory);
    function decimals() external view returns (uint8);
    function totalSupply() external view returns (uint256);
    function balanceOf(address account) external view returns (uint256);
    function transfer(address to, uint256 value) external returns (bool);
    function allowance(address owner, address spender) external view returns (uint256);
    function approve(address spender, uint256 value) external returns (bool);
    function transferFrom(address from, address to, uint256 value) external returns (bool);
}

interface ILibraryErrors {
    /// @notice The token refused the transfer.
    error SafeERC20FailedOperation(address token);
    /// @notice A call into the contract from within one of its calls.
    error ReentrancyGuardReentrantCall();
    /// @notice A number does not fit its type.
    error SafeCastOverflowedUintDowncast(uint8 bits, uint256 value);
}

interface IDevToken {
    function mint(address to, uint256 amount) external;
}

interface IMulticall {
    function multicall(bytes[] calldata data) external returns (bytes[] memory results);
}

interface IPermit {
    function nonces(address owner) external view returns (uint256);
    function DOMAIN_SEPARATOR() external view returns (bytes32);
}
