// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Channels} from "../contracts/Channels.sol";
import {ChannelState, IChannels} from "../contracts/interfaces/IChannels.sol";
import {IPermit2} from "../contracts/interfaces/IPermit2.sol";
import {AuthToken} from "./support/AuthToken.sol";
import {Exchange} from "./support/Exchange.sol";
import {FeeToken} from "./support/FeeToken.sol";
import {SignatureTransfer} from "./support/SignatureTransfer.sol";

contract ChannelsMoneyTest is Exchange {
    bytes32 internal constant PERMIT =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
    bytes32 internal constant RECEIVE = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );

    address internal paul;
    uint256 internal paulKey;

    function setUp() public override {
        super.setUp();
        // He has not approved anything.
        (paul, paulKey) = makeAddrAndKey("paul, a payer");
        token.mint(paul, 100 ether);
    }

    function withToken(address other) internal returns (Channels) {
        return new Channels(other, address(nodes), address(trials), address(0), rp);
    }

    // -------------------------------------------------------------------------------------------------- deposit

    function test_deposit() public {
        vm.expectEmit();
        emit IChannels.Deposited(walt, 7 ether);
        vm.prank(walt);
        channels.deposit(7 ether);
        assertEq(channels.balanceOf(walt), 7 ether);
        assertEq(channels.totalBalances(), 7 ether);
        assertEq(channels.totalCommitted(), DEPOSIT);
        assertConserved();
    }

    function test_deposit_zero() public {
        vm.expectRevert(IChannels.ZeroAmount.selector);
        channels.deposit(0);
    }

    function test_deposit_feeOnTransfer() public {
        FeeToken cheat = new FeeToken();
        Channels c = withToken(address(cheat));
        cheat.mint(walt, 100);
        vm.startPrank(walt);
        cheat.approve(address(c), 100);
        vm.expectRevert(abi.encodeWithSelector(IChannels.TransferMismatch.selector, 99, 100));
        c.deposit(100);
    }

    function permit(uint128 amount, uint256 deadline) internal view returns (uint8 v, bytes32 r, bytes32 s) {
        bytes32 message = keccak256(abi.encode(PERMIT, paul, address(channels), amount, token.nonces(paul), deadline));
        return vm.sign(paulKey, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), message)));
    }

    function test_depositWithPermit() public {
        (uint8 v, bytes32 r, bytes32 s) = permit(5 ether, block.timestamp);
        vm.prank(paul);
        channels.depositWithPermit(5 ether, block.timestamp, v, r, s);
        assertEq(channels.balanceOf(paul), 5 ether);
        assertConserved();
    }

    /// Somebody sends the permit first, to make the deposit fail.
    function test_depositWithPermit_used() public {
        (uint8 v, bytes32 r, bytes32 s) = permit(5 ether, block.timestamp);
        vm.prank(mallory);
        token.permit(paul, address(channels), 5 ether, block.timestamp, v, r, s);
        vm.prank(paul);
        channels.depositWithPermit(5 ether, block.timestamp, v, r, s);
        assertEq(channels.balanceOf(paul), 5 ether);
    }

    function test_depositWithPermit_wrong() public {
        (uint8 v, bytes32 r, bytes32 s) = permit(5 ether, block.timestamp);
        vm.prank(paul);
        vm.expectRevert();
        channels.depositWithPermit(6 ether, block.timestamp, v, r, s);
        // A permit does not let another one deposit what is paul's.
        vm.prank(mallory);
        channels.depositWithPermit(5 ether, block.timestamp, v, r, s);
        assertEq(channels.balanceOf(mallory), 5 ether);
        assertEq(token.balanceOf(mallory), FUNDS - 5 ether);
        assertEq(token.balanceOf(paul), 100 ether);
    }

    function test_depositWithAuthorization() public {
        AuthToken auth = new AuthToken();
        Channels c = withToken(address(auth));
        auth.mint(paul, 10);
        bytes32 message = keccak256(
            abi.encode(RECEIVE, paul, address(c), 10, block.timestamp - 1, block.timestamp + 1, bytes32("n"))
        );
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(paulKey, keccak256(abi.encodePacked(hex"1901", auth.domainSeparator(), message)));
        vm.startPrank(mallory);
        vm.expectRevert();
        c.depositWithAuthorization(mallory, 10, block.timestamp - 1, block.timestamp + 1, "n", v, r, s);
        vm.expectRevert(IChannels.ZeroAmount.selector);
        c.depositWithAuthorization(paul, 0, block.timestamp - 1, block.timestamp + 1, "n", v, r, s);
        // Whoever sends it, it is his.
        c.depositWithAuthorization(paul, 10, block.timestamp - 1, block.timestamp + 1, "n", v, r, s);
        assertEq(c.balanceOf(paul), 10);
        assertEq(c.totalBalances(), 10);
        vm.expectRevert();
        c.depositWithAuthorization(paul, 10, block.timestamp - 1, block.timestamp + 1, "n", v, r, s);
    }

    function test_depositWithPermit2() public {
        SignatureTransfer permit2 = new SignatureTransfer();
        Channels c = new Channels(address(token), address(nodes), address(trials), address(permit2), rp);
        assertEq(c.permit2(), address(permit2));
        vm.prank(paul);
        token.approve(address(permit2), type(uint256).max);
        IPermit2.PermitTransferFrom memory p =
            IPermit2.PermitTransferFrom(IPermit2.TokenPermissions(address(token), 10 ether), 77, block.timestamp);
        bytes memory signature = sign(paulKey, permit2.digest(p, address(c)));
        vm.startPrank(mallory);
        vm.expectRevert("InvalidSigner");
        c.depositWithPermit2(paul, 9 ether, 77, block.timestamp, signature);
        c.depositWithPermit2(paul, 10 ether, 77, block.timestamp, signature);
        assertEq(c.balanceOf(paul), 10 ether);
        vm.expectRevert("InvalidNonce");
        c.depositWithPermit2(paul, 10 ether, 77, block.timestamp, signature);
        vm.expectRevert(IChannels.NoPermit2.selector);
        channels.depositWithPermit2(paul, 10 ether, 77, block.timestamp, signature);
    }

    // ------------------------------------------------------------------------------------------------- withdraw

    function test_withdraw() public {
        vm.startPrank(walt);
        channels.deposit(7 ether);
        vm.expectEmit();
        emit IChannels.Withdrawn(walt, 7 ether);
        assertEq(channels.withdraw(), 7 ether);
        assertEq(token.balanceOf(walt), FUNDS);
        assertConserved();
        vm.expectRevert(abi.encodeWithSelector(IChannels.NothingToWithdraw.selector, walt));
        channels.withdraw();
    }

    // ------------------------------------------------------------------------------------------------ multicall

    /// Permit, deposit and two channels in one transaction.
    function test_multicall() public {
        (uint8 v, bytes32 r, bytes32 s) = permit(50 ether, block.timestamp);
        bytes[] memory calls = new bytes[](3);
        calls[0] = abi.encodeCall(IChannels.depositWithPermit, (50 ether, block.timestamp, v, r, s));
        calls[1] = abi.encodeCall(IChannels.open, (nora, address(0), 30 ether, "a"));
        calls[2] = abi.encodeCall(IChannels.open, (nils, gateway, 20 ether, "b"));
        vm.prank(paul);
        bytes[] memory results = channels.multicall(calls);
        bytes32 a = channels.channelIdOf(paul, nora, "a");
        assertEq(abi.decode(results[1], (bytes32)), a);
        assertChannel(a, ChannelState.Open);
        assertChannel(channels.channelIdOf(paul, nils, "b"), ChannelState.Open);
        assertEq(channels.balanceOf(paul), 0);
        assertConserved();
    }

    function test_multicall_reverts() public {
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(IChannels.deposit, (1 ether));
        calls[1] = abi.encodeCall(IChannels.open, (nora, address(0), 2 ether, "a"));
        vm.expectRevert(abi.encodeWithSelector(IChannels.InsufficientBalance.selector, walt, 1 ether, 2 ether));
        vm.prank(walt);
        channels.multicall(calls);
    }

    // ---------------------------------------------------------------------------------------------- constructor

    function expectParameter(string memory name, uint256 actual, uint256 min, uint256 max) internal {
        vm.expectRevert(abi.encodeWithSelector(IChannels.ParameterOutOfRange.selector, name, actual, min, max));
        new Channels(address(token), address(nodes), address(trials), address(0), rp);
    }

    function test_constructor_parameters() public {
        IChannels.Params memory good = channels.params();
        rp.window = 0;
        expectParameter("window", 0, 1, type(uint32).max);
        rp = good;
        rp.closeDelay = good.window - 1;
        expectParameter("closeDelay", good.window - 1, good.window, type(uint32).max);
        rp = good;
        rp.receiptTurn = 0;
        expectParameter("receiptTurn", 0, 1, type(uint32).max);
        rp = good;
        rp.lodgeTurn = type(uint40).max;
        expectParameter("lodgeTurn", type(uint40).max, 1, type(uint32).max);
        rp = good;
        rp.receiptFee = 0;
        expectParameter("receiptFee", 0, 1, type(uint128).max);
        rp = good;
        rp.minBond = 2;
        expectParameter("minBond", 2, 3, type(uint128).max);
        rp = good;
        rp.challengerShareBps = 10_000;
        expectParameter("challengerShareBps", 10_000, 1, 9_999);
        rp = good;
        rp.userShareBps = 6_000;
        expectParameter("userShareBps", 6_000, 0, 5_999);
    }

    // ----------------------------------------------------------------------------------------------- trials only

    function test_onlyTrials() public {
        bytes memory error_ = abi.encodeWithSelector(IChannels.NotTrials.selector, mallory, address(trials));
        vm.startPrank(mallory);
        vm.expectRevert(error_);
        channels.hold(nowhere(), id, 1);
        vm.expectRevert(error_);
        channels.letGo(1);
        vm.expectRevert(error_);
        channels.takeFee(walt, 1);
        vm.expectRevert(error_);
        channels.payFee(mallory, 1);
        vm.expectRevert(error_);
        channels.convict(id);
        vm.expectRevert(error_);
        channels.payReward(mallory, 1);
    }
}
