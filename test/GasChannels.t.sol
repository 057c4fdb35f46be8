// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {IChallenges, Target, TargetKind} from "../contracts/interfaces/IChallenges.sol";
import {Place, Receipt as SignedReceipt, Redemption} from "../contracts/interfaces/IChannels.sol";
import {JobId} from "../contracts/interfaces/ICourt.sol";
import {Exchange} from "./support/Exchange.sol";

/// @notice What payment by receipts costs, each call a transaction of its own, calldata included: see Gas.t.sol.
/// forge-config: default.isolate = true
contract GasChannelsTest is Exchange {
    /// what one inference may cost its node
    uint256 internal constant PER_INFERENCE = 5_000;

    bytes32[] internal ids;

    function setUp() public override {
        super.setUp();
        vm.prank(nora);
        nodes.deposit(10 * STAKE);
        vm.prank(uma);
        channels.deposit(1);
        // Not the first of anything: what is measured is the everyday case.
        for (uint256 i; i < 10; i++) {
            ids.push(openChannel(uma, nora, DEPOSIT, keccak256(abi.encode(i))));
            redeem(redemption(ids[i], 1));
        }
        redeemed(1);
        skip(1 days);
        for (uint256 b = 1; b <= 11; b++) {
            channels.release(b);
        }
        // The gateway has paid up to here before.
        vm.prank(uma);
        channels.topUp(id, 1);
    }

    function snap(string memory name) internal returns (uint256) {
        return vm.snapshotGasLastCall("channels", name);
    }

    function release(string memory name) internal returns (uint256) {
        skip(1 days);
        channels.release(12);
        return snap(name);
    }

    function test_gas_oneChannel() public {
        vm.prank(uma);
        channels.deposit(10 * DEPOSIT);
        vm.prank(uma);
        channels.topUp(id, DEPOSIT);
        Redemption[] memory list = one(redemption(id, 101));
        vm.prank(nora);
        channels.redeem(list);
        uint256 gas = snap("redeem, 1 channel of 100 receipts");
        gas += release("release, 1 channel");
        assertLe(gas / 100, PER_INFERENCE);
    }

    function test_gas_tenChannels() public {
        Redemption[] memory list = new Redemption[](10);
        for (uint256 i; i < 10; i++) {
            list[i] = redemption(ids[i], 11);
        }
        vm.prank(nora);
        channels.redeem(list);
        uint256 gas = snap("redeem, 10 channels of 10 receipts");
        gas += release("release, 10 channels");
        assertLe(gas / 100, PER_INFERENCE);
    }

    function test_gas_money() public {
        vm.startPrank(wanda);
        channels.deposit(10 ether);
        snap("deposit");
        bytes32 opened = channels.open(nora, gateway, 5 ether, "w");
        snap("open");
        channels.topUp(opened, 1 ether);
        snap("topUp");
        channels.requestClose(opened);
        snap("requestClose");
        skip(1 days);
        channels.close(opened);
        snap("close");
        channels.withdraw();
        snap("withdraw");
    }

    function test_gas_receipts() public {
        Place memory place = redeemed(99);
        vm.prank(walt);
        channels.demandReceipt(place, 50);
        snap("demandReceipt");
        SignedReceipt memory r = receipt(50);
        bytes memory signature = signed(r);
        bytes32[] memory proof = receiptProof(id, 2, 99, 50);
        vm.prank(nora);
        channels.publishReceipt(place, r, signature, proof);
        snap("publishReceipt, one of 98");
        vm.prank(walt);
        JobId job = trials.lodge(r, signature, place);
        snap("lodge");

        IChallenges.DemandProof memory p;
        p.nodeHash = r.inputHash;
        Target memory t = Target(TargetKind.Tokens, 0, 0, 0, 0, 0);
        vm.prank(walt);
        challenges.demand(job, NONE, t, p);
        snap("demand tokens");
        vm.prank(nora);
        challenges.answer(job, t, r.inputHash, 1, 12, tokens(3));
        snap("answer tokens, 3");
        skip(1 days);
        trials.acquit(job);
        snap("acquit");
    }

    function test_gas_silence() public {
        Place memory place = redeemed(99);
        vm.prank(walt);
        channels.demandReceipt(place, 50);
        skip(1 days);
        channels.receiptTimeout(12, id, 50);
        snap("receiptTimeout");
        channels.refund(place);
        snap("refund");
    }

    function test_gas_convict() public {
        (SignedReceipt memory a, SignedReceipt memory b) = (receipt(4), receipt(4));
        b.price += 1;
        (bytes memory signatureA, bytes memory signatureB) = (signed(a), signed(b));
        vm.prank(walt);
        trials.convictEquivocation(a, signatureA, b, signatureB);
        snap("convictEquivocation");
    }
}
