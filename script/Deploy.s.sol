// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.28;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Script, console} from "forge-std/Script.sol";
import {Challenges} from "../contracts/Challenges.sol";
import {Channels} from "../contracts/Channels.sol";
import {Market} from "../contracts/Market.sol";
import {Models} from "../contracts/Models.sol";
import {Nodes} from "../contracts/Nodes.sol";
import {StepVerifier} from "../contracts/StepVerifier.sol";
import {Trials} from "../contracts/Trials.sol";
import {DevToken} from "../contracts/dev/DevToken.sol";
import {IChallenges} from "../contracts/interfaces/IChallenges.sol";
import {IChannels} from "../contracts/interfaces/IChannels.sol";
import {IMarket} from "../contracts/interfaces/IMarket.sol";

/// @title Deploy
/// @notice Deploys one market and writes where everything is to SWORN_DEPLOYMENT.
///
///     SWORN_DEPLOYMENT=out/deployment.json forge script script/Deploy.s.sol --broadcast \
///         --rpc-url http://127.0.0.1:8545 --private-key …
///
/// Order: [DevToken], StepVerifier, Models, Nodes, Market, Channels, Trials, Challenges. Nodes to Trials name contracts that
/// come after them, by the addresses their creation will have; the constructor of Challenges, the last, checks that all agree.
///
/// SWORN_PRESET picks the defaults of every parameter: `devnet` or `l2`, a rollup with real money. Each can be set by its own
/// variable. SWORN_TOKEN is the payment token; without it a DevToken is deployed, on a development chain only.
contract Deploy is Script {
    /// @notice the parameters that were asked for, by the names of their variables
    struct Config {
        address token; // SWORN_TOKEN
        uint256 unstakeDelay; // SWORN_UNSTAKE_DELAY
        address permit2; // SWORN_PERMIT2; by default the usual address, if there is a contract
        IMarket.Params market; // SWORN_ACCEPT_TIMEOUT, …
        IChannels.Params channels; // SWORN_CHANNEL_WINDOW, …
        IChallenges.Params challenges; // SWORN_NODE_TURN, …
    }

    struct Deployment {
        address token;
        address models;
        address nodes;
        address market;
        address channels;
        address trials;
        address challenges;
        address stepVerifier;
    }

    /// @notice where Permit2 is on most chains
    address public constant PERMIT2 = 0x000000000022D473030F116dDEE9F6B43aC78BA3;

    /// @notice gas of a challenger over the deepest challenge with the dearest proof, at most (docs/security.md)
    uint256 public constant CHALLENGE_GAS = 3_000_000;
    /// @notice gas of a node's answer to one demand, at most
    uint256 public constant ANSWER_GAS = 400_000;
    /// @notice how many times an honest challenger's cost a convicted node loses for good, at least
    uint256 public constant LOSS_PER_COST = 10;

    error UnknownPreset(string preset);
    /// @notice A DevToken is worth nothing; set SWORN_TOKEN on this chain.
    error TokenNeeded(uint256 chainId);
    error ParameterTooLarge(string variable, uint256 value, uint256 max);
    /// @notice A contract is not where it was expected; the account has sent something else meanwhile.
    error AddressMismatch(string name, address actual, address expected);

    function run() external returns (Deployment memory d) {
        Config memory c = config();
        vm.startBroadcast();
        (, address deployer,) = vm.readCallers();
        d = deploy(c, deployer);
        vm.stopBroadcast();
        string memory path = vm.envOr("SWORN_DEPLOYMENT", string(""));
        if (bytes(path).length != 0) write(d, path);
    }

    /// @notice The same with bonds and fees no smaller than gas makes them: a challenge costs its challenger at most CHALLENGE_GAS, which
    /// the reward pays, and a convicted node loses LOSS_PER_COST times that beyond what the reward gives back, to itself even; each
    /// demand pays for its answer.
    /// @param gasPrice in wei, the dearest that is to be withstood
    /// @param weiPerToken what 10^18 of the token's smallest unit are worth
    function sized(Config memory c, uint256 gasPrice, uint256 weiPerToken) public pure returns (Config memory) {
        uint256 challenge = Math.ceilDiv(CHALLENGE_GAS * gasPrice * 1 ether, weiPerToken);
        uint256 reward = c.market.challengerShareBps;
        uint256 bond = Math.max(
            Math.ceilDiv(challenge * 10_000, reward), Math.ceilDiv(LOSS_PER_COST * challenge * 10_000, 10_000 - reward)
        );
        uint256 fee = Math.ceilDiv(ANSWER_GAS * gasPrice * 1 ether, weiPerToken);
        c.market.minBond = atLeast("SWORN_MIN_BOND", c.market.minBond, bond);
        c.channels.minBond = atLeast("SWORN_BATCH_MIN_BOND", c.channels.minBond, bond);
        c.challenges.demandFee = atLeast("SWORN_DEMAND_FEE", c.challenges.demandFee, fee);
        c.channels.receiptFee = atLeast("SWORN_RECEIPT_FEE", c.channels.receiptFee, fee);
        return c;
    }

    function atLeast(string memory name, uint128 value, uint256 least) private pure returns (uint128) {
        if (least > type(uint128).max) revert ParameterTooLarge(name, least, type(uint128).max);
        return uint128(Math.max(value, least));
    }

    /// @notice Deploys from `deployer`'s next nonces on; the caller has arranged that it is the sender.
    function deploy(Config memory c, address deployer) public returns (Deployment memory d) {
        d.token = c.token;
        if (d.token == address(0)) {
            if (!isDevelopment(block.chainid)) revert TokenNeeded(block.chainid);
            d.token = address(new DevToken());
        }
        uint256 nonce = vm.getNonce(deployer);
        d.nodes = vm.computeCreateAddress(deployer, nonce + 2);
        d.market = vm.computeCreateAddress(deployer, nonce + 3);
        d.channels = vm.computeCreateAddress(deployer, nonce + 4);
        d.trials = vm.computeCreateAddress(deployer, nonce + 5);
        d.challenges = vm.computeCreateAddress(deployer, nonce + 6);

        d.stepVerifier = address(new StepVerifier());
        d.models = address(new Models());
        same(
            "Nodes",
            address(new Nodes(d.token, d.models, d.market, d.channels, u64("SWORN_UNSTAKE_DELAY", c.unstakeDelay))),
            d.nodes
        );
        same("Market", address(new Market(d.token, d.models, d.nodes, d.challenges, c.market)), d.market);
        same("Channels", address(new Channels(d.token, d.nodes, d.trials, c.permit2, c.channels)), d.channels);
        same("Trials", address(new Trials(d.channels, d.models, d.challenges)), d.trials);
        same(
            "Challenges",
            address(new Challenges(d.market, d.trials, d.models, d.stepVerifier, c.challenges)),
            d.challenges
        );
    }

    /// @notice The preset, with what the environment sets. SWORN_GAS_PRICE (wei per gas, the dearest that is to be withstood) and
    /// SWORN_WEI_PER_TOKEN (what 10^18 of the token's smallest unit are worth) raise bonds and fees to what they must be.
    function config() public view returns (Config memory c) {
        string memory name = vm.envOr("SWORN_PRESET", string("devnet"));
        c = preset(name);
        uint256 gasPrice = vm.envOr("SWORN_GAS_PRICE", uint256(0));
        if (gasPrice > 0) c = sized(c, gasPrice, vm.envUint("SWORN_WEI_PER_TOKEN"));
        c.token = vm.envOr("SWORN_TOKEN", address(0));
        IMarket.Params memory m = c.market;
        m.acceptTimeout = u40("SWORN_ACCEPT_TIMEOUT", m.acceptTimeout);
        m.auctionTime = u40("SWORN_AUCTION_TIME", m.auctionTime);
        m.submitTimeout = u40("SWORN_SUBMIT_TIMEOUT", m.submitTimeout);
        m.challengeWindow = u40("SWORN_CHALLENGE_WINDOW", m.challengeWindow);
        m.minBond = u128("SWORN_MIN_BOND", m.minBond);
        m.bondFactorBps = u16("SWORN_BOND_FACTOR_BPS", m.bondFactorBps);
        m.latePenaltyBps = u16("SWORN_LATE_PENALTY_BPS", m.latePenaltyBps);
        m.userShareBps = u16("SWORN_USER_SHARE_BPS", m.userShareBps);
        m.challengerShareBps = u16("SWORN_CHALLENGER_SHARE_BPS", m.challengerShareBps);

        IChannels.Params memory r = c.channels;
        r.window = u40("SWORN_CHANNEL_WINDOW", r.window);
        r.closeDelay = u40("SWORN_CLOSE_DELAY", r.closeDelay);
        r.receiptTurn = u40("SWORN_RECEIPT_TURN", r.receiptTurn);
        r.lodgeTurn = u40("SWORN_LODGE_TURN", r.lodgeTurn);
        r.receiptFee = u128("SWORN_RECEIPT_FEE", r.receiptFee);
        r.minBond = u128("SWORN_BATCH_MIN_BOND", r.minBond);
        r.bondFactorBps = u16("SWORN_BATCH_BOND_FACTOR_BPS", r.bondFactorBps);
        // One rule of shares for both courts.
        (r.userShareBps, r.challengerShareBps) = (m.userShareBps, m.challengerShareBps);
        c.permit2 = vm.envOr("SWORN_PERMIT2", PERMIT2.code.length == 0 ? address(0) : PERMIT2);

        IChallenges.Params memory p = c.challenges;
        p.nodeTurn = u40("SWORN_NODE_TURN", p.nodeTurn);
        p.challengerTurn = u40("SWORN_CHALLENGER_TURN", p.challengerTurn);
        p.demandFee = u128("SWORN_DEMAND_FEE", p.demandFee);

        // Longer turns than the preset's want a longer delay than the preset's, or Challenges refuses to be deployed.
        uint256 turns = uint256(p.nodeTurn) + p.challengerTurn;
        uint256 longest = uint256(m.submitTimeout) + m.challengeWindow + 8 * turns;
        uint256 receipt = uint256(r.window) + r.receiptTurn + r.lodgeTurn;
        receipt += (r.window > r.lodgeTurn ? r.window : r.lodgeTurn) + 9 * turns;
        if (receipt > longest) longest = receipt;
        if (c.unstakeDelay <= longest) c.unstakeDelay = longest + 1;
        c.unstakeDelay = vm.envOr("SWORN_UNSTAKE_DELAY", c.unstakeDelay);
    }

    /// @notice `devnet`: a whole challenge in minutes. `l2`: turns long enough to outlast a day of censorship, a window in
    /// which an answer can be re-executed at leisure; amounts are for a token of 18 decimals worth about a dollar.
    function preset(string memory name) public pure returns (Config memory c) {
        bytes32 which = keccak256(bytes(name));
        if (which == keccak256("devnet")) {
            c.unstakeDelay = 10 minutes;
            c.market = IMarket.Params({
                acceptTimeout: 60,
                auctionTime: 20,
                submitTimeout: 120,
                challengeWindow: 30,
                minBond: 10 ether,
                bondFactorBps: 20_000,
                latePenaltyBps: 500,
                userShareBps: 3_000,
                challengerShareBps: 4_000
            });
            c.channels = IChannels.Params({
                window: 30,
                closeDelay: 60,
                receiptTurn: 20,
                lodgeTurn: 20,
                receiptFee: 0.01 ether,
                minBond: 10 ether,
                bondFactorBps: 20_000,
                userShareBps: 3_000,
                challengerShareBps: 4_000
            });
            c.challenges = IChallenges.Params({nodeTurn: 20, challengerTurn: 20, demandFee: 0.01 ether});
        } else if (which == keccak256("l2")) {
            c.unstakeDelay = 30 days;
            c.market = IMarket.Params({
                acceptTimeout: 10 minutes,
                auctionTime: 2 minutes,
                submitTimeout: 1 hours,
                challengeWindow: 1 days,
                minBond: 500 ether,
                bondFactorBps: 50_000,
                latePenaltyBps: 100,
                userShareBps: 2_000,
                challengerShareBps: 4_000
            });
            c.channels = IChannels.Params({
                window: 1 days,
                closeDelay: 2 days,
                receiptTurn: 1 days,
                lodgeTurn: 1 days,
                receiptFee: 1 ether,
                minBond: 500 ether,
                bondFactorBps: 50_000,
                userShareBps: 2_000,
                challengerShareBps: 4_000
            });
            c.challenges = IChallenges.Params({nodeTurn: 1 days, challengerTurn: 1 days, demandFee: 1 ether});
        } else {
            revert UnknownPreset(name);
        }
    }

    /// @notice Writes the deployment file.
    function write(Deployment memory d, string memory path) public {
        string memory key = "deployment";
        vm.serializeUint(key, "chainId", block.chainid);
        // The state the script ran on is older than the deployment, so nothing of it is missed from here on.
        vm.serializeUint(key, "block", block.number);
        vm.serializeAddress(key, "token", d.token);
        vm.serializeAddress(key, "models", d.models);
        vm.serializeAddress(key, "nodes", d.nodes);
        vm.serializeAddress(key, "market", d.market);
        vm.serializeAddress(key, "channels", d.channels);
        vm.serializeAddress(key, "trials", d.trials);
        vm.serializeAddress(key, "challenges", d.challenges);
        vm.writeJson(vm.serializeAddress(key, "stepVerifier", d.stepVerifier), path);
        console.log("deployment written to", path);
    }

    /// @notice Chains where money is play: anvil's, hardhat's and geth's development ids.
    function isDevelopment(uint256 chainId) public pure returns (bool) {
        return chainId == 31337 || chainId == 1337;
    }

    function same(string memory name, address actual, address expected) private pure {
        if (actual != expected) revert AddressMismatch(name, actual, expected);
    }

    function u16(string memory variable, uint16 otherwise) private view returns (uint16) {
        return uint16(fit(variable, vm.envOr(variable, uint256(otherwise)), type(uint16).max));
    }

    function u40(string memory variable, uint40 otherwise) private view returns (uint40) {
        return uint40(fit(variable, vm.envOr(variable, uint256(otherwise)), type(uint40).max));
    }

    function u64(string memory variable, uint256 value) private pure returns (uint64) {
        return uint64(fit(variable, value, type(uint64).max));
    }

    function u128(string memory variable, uint128 otherwise) private view returns (uint128) {
        return uint128(fit(variable, vm.envOr(variable, uint256(otherwise)), type(uint128).max));
    }

    function fit(string memory variable, uint256 value, uint256 max) private pure returns (uint256) {
        if (value > max) revert ParameterTooLarge(variable, value, max);
        return value;
    }
}
