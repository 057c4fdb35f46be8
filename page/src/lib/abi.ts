// What the page calls and reads; contracts/interfaces says what each means.
import { parseAbi } from 'viem';

const receipt =
  'struct Receipt { bytes32 channelId; uint64 sequence; uint64 request; bytes32 modelId; bytes32 inputHash; bytes32 outputHash; uint32 nIn; uint32 nOut; uint32 maxNew; uint256 sampling; bytes32 seed; bytes32 layersRoot; uint128 price; uint128 cumulative; }';
const part =
  'struct Part { bytes32 channelId; uint64 first; uint64 last; uint128 amount; uint128 cumulative; bytes32 receiptsRoot; }';

export const token = parseAbi([
  'function balanceOf(address) view returns (uint256)',
  'function allowance(address, address) view returns (uint256)',
  'function approve(address, uint256) returns (bool)',
  'function nonces(address) view returns (uint256)',
  'function eip712Domain() view returns (bytes1 fields, string name, string version, uint256 chainId, address verifyingContract, bytes32 salt, uint256[] extensions)',
]);

export const channels = parseAbi([
  part,
  'struct Channel { address user; address node; uint40 closeAt; address signer; uint64 sequence; uint8 state; uint128 deposit; uint128 claimed; }',
  'struct Batch { address node; uint40 windowEnd; uint24 unanswered; uint24 openTrials; uint8 state; uint128 amount; uint64 refunded; uint8 parts; uint40 lodgeEnd; bytes32 partsRoot; }',
  'function deposit(uint128)',
  'function depositWithPermit(uint128 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)',
  'function open(address node, address signer, uint128 amount, bytes32 salt) returns (bytes32)',
  'function withdraw() returns (uint256)',
  'function balanceOf(address) view returns (uint256)',
  'function channel(bytes32) view returns (Channel)',
  'function batch(uint256) view returns (Batch)',
  'event ChannelOpened(bytes32 indexed channelId, address indexed user, address indexed node, address signer, uint128 amount)',
  'event BatchRedeemed(uint256 indexed batchId, address indexed node, uint128 amount, uint128 bond, uint40 windowEnd, Part[] parts)',
  'event BatchReleased(uint256 indexed batchId, address indexed node, uint128 amount)',
  'event BatchVoid(uint256 indexed batchId, address indexed node)',
  'event NodeConvicted(address indexed node, uint256 taken, uint256 compensation, uint256 reward, uint256 burned)',
]);

export const trials = parseAbi([
  receipt,
  'function jobOf(bytes32 digest) view returns (uint256)',
  'event ReceiptLodged(uint256 indexed jobId, bytes32 indexed digest, address indexed node, Receipt receipt, bytes32 traceRoot, uint40 deadline)',
  'event TrialAcquitted(uint256 indexed jobId, uint256 fees)',
]);

export const nodes = parseAbi([
  'struct Node { uint128 stake; uint128 locked; uint128 unbonding; uint64 unbondingAt; uint32 capacity; uint32 active; uint32 served; uint32 timedOut; uint32 slashed; bool convicted; uint128 pledged; string endpoint; }',
  'struct Ask { uint128 perInputToken; uint128 perOutputToken; uint32 maxTokens; }',
  'function node(address) view returns (Node)',
  'function ask(address, bytes32) view returns (Ask)',
  'event NodeUpdated(address indexed node, string endpoint, uint32 capacity)',
  'event StakeDeposited(address indexed node, uint256 amount)',
]);

export const market = parseAbi([
  'function withdraw() returns (uint256)',
  'function withdrawable(address) view returns (uint256)',
  'event JobCreated(uint256 indexed jobId, address indexed user, address indexed node, bytes32 modelId, uint32 maxNew, uint128 escrow, uint256 sampling, bytes32 seed, bytes promptTokens)',
  'event ResultSubmitted(uint256 indexed jobId, address indexed node, bytes outputTokens, bytes32 layersRoot, bytes32 traceRoot, uint40 windowEnd)',
  'event JobFinalized(uint256 indexed jobId, uint256 paid, uint256 refunded)',
  'event JobSlashed(uint256 indexed jobId, address indexed node, uint256 bond, uint256 refunded, uint256 compensation, uint256 reward, uint256 burned)',
]);

export const challenges = parseAbi([
  'struct Target { uint8 kind; uint16 layer; uint32 row; uint16 op; uint8 level; uint32 index; }',
  'struct Claim { uint16 layer; uint32 row; uint16 op; uint32 element; }',
  'event Demanded(uint256 indexed jobId, bytes32 indexed openingId, address indexed payer, Target target, bytes32 nodeHash, uint32 leafCount, uint32 byteLength, uint8 depth, uint40 deadline)',
  'event Answered(uint256 indexed jobId, bytes32 indexed openingId, address indexed by, Target target, bytes data)',
  'event Announced(uint256 indexed jobId, address indexed by, bytes32 commitment)',
  'event FraudProven(uint256 indexed jobId, address indexed by, Claim claim, int256 claimed, int256 computed)',
  'event TimedOut(uint256 indexed jobId, bytes32 indexed openingId, address indexed payer)',
]);
