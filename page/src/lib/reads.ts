// What the views show, read from the chain.
import type { Address, Hex } from 'viem';
import * as abi from './abi';
import { event, type Chain } from './chain.svelte';
import type { Oath } from './gateway';

export interface NodeRow {
  address: Address;
  stake: bigint;
  locked: bigint;
  pledged: bigint;
  unbonding: bigint;
  unbondingAt: number;
  capacity: number;
  active: number;
  served: number;
  timedOut: number;
  slashed: number;
  convicted: boolean;
  endpoint: string;
  /** Per token of the model, in the token's smallest unit; none: not offered. */
  ask: { input: bigint; output: bigint; maxTokens: number } | null;
}

export async function node(chain: Chain, address: Address, model?: Hex): Promise<NodeRow> {
  const reader = chain.reader!;
  const contract = { address: chain.settings.contracts.nodes, abi: abi.nodes } as const;
  const n = await reader.readContract({ ...contract, functionName: 'node', args: [address] });
  const ask = model ? await reader.readContract({ ...contract, functionName: 'ask', args: [address, model] }) : null;
  return {
    ...n,
    address,
    unbondingAt: Number(n.unbondingAt),
    ask: ask?.maxTokens ? { input: ask.perInputToken, output: ask.perOutputToken, maxTokens: ask.maxTokens } : null,
  };
}

export async function nodes(chain: Chain, model?: Hex): Promise<NodeRow[]> {
  const seen = await chain.logs(chain.settings.contracts.nodes, event(abi.nodes, 'NodeUpdated'));
  const addresses: Address[] = [...new Set(seen.map((log) => log.args.node as Address))];
  return Promise.all(addresses.map((a) => node(chain, a, model)));
}

export interface ChannelRow {
  id: Hex;
  node: Address;
  deposit: bigint;
  claimed: bigint;
  open: boolean;
}

/** Channels of an account whose vouchers this gateway signs. */
export async function channels(chain: Chain, user: Address): Promise<ChannelRow[]> {
  const { channels: address } = chain.settings.contracts;
  const opened = await chain.logs(address, event(abi.channels, 'ChannelOpened'), { user });
  const ours = opened.filter((log) => log.args.signer.toLowerCase() === chain.settings.signer.toLowerCase());
  return Promise.all(
    ours.map(async (log) => {
      const id = log.args.channelId as Hex;
      const c = await chain.reader!.readContract({ address, abi: abi.channels, functionName: 'channel', args: [id] });
      return { id, node: c.node, deposit: c.deposit, claimed: c.claimed, open: c.state === 1 };
    }),
  );
}

/** How a receipt stands on chain. */
export type Standing =
  | { what: 'signed' }
  | { what: 'redeemed'; batch: bigint; until: number }
  | { what: 'paid'; batch: bigint }
  | { what: 'void'; batch: bigint }
  | { what: 'on trial'; job: bigint };

export async function standing(chain: Chain, { receiptDigest, receipt }: Oath['receipts'][number]): Promise<Standing> {
  const { channels: address, trials } = chain.settings.contracts;
  const reader = chain.reader!;
  const job = await reader.readContract({ address: trials, abi: abi.trials, functionName: 'jobOf', args: [receiptDigest] });
  if (job) return { what: 'on trial', job };
  const channel = await reader.readContract({ address, abi: abi.channels, functionName: 'channel', args: [receipt.channelId] });
  const sequence = BigInt(receipt.sequence);
  if (channel.sequence < sequence) return { what: 'signed' };
  const batches = await chain.logs(address, event(abi.channels, 'BatchRedeemed'), { node: channel.node });
  for (const { args } of batches) {
    const holds = (p: any) => p.channelId === receipt.channelId && p.first <= sequence && sequence <= p.last;
    if (!args.parts.some(holds)) continue;
    const batch = await reader.readContract({ address, abi: abi.channels, functionName: 'batch', args: [args.batchId] });
    if (batch.state === 2) return { what: 'paid', batch: args.batchId };
    if (batch.state === 3) return { what: 'void', batch: args.batchId };
    return { what: 'redeemed', batch: args.batchId, until: Number(batch.windowEnd) };
  }
  return { what: 'signed' };
}

export interface Step {
  block: bigint;
  tx: Hex;
  what: 'demand' | 'answer' | 'announcement' | 'proof' | 'silence';
  by: Address;
  text: string;
}

export interface Proof {
  layer: number;
  row: number;
  op: number;
  element: number;
  claimed: bigint;
  computed: bigint;
}

export interface Case {
  job: bigint;
  node: Address | null;
  model: Hex | null;
  positions: number | null;
  prompt: number | null;
  steps: Step[];
  proof: Proof | null;
  silent: boolean;
}

const KINDS = ['tree of layers', 'tree of positions', 'operators', 'pages', 'page', 'tokens'];

function target(t: any): string {
  const kind = KINDS[t.kind] ?? 'opening';
  if (t.kind === 0) return `${kind}, level ${t.level}, number ${t.index}`;
  if (t.kind === 1) return `layer ${t.layer}: ${kind}, level ${t.level}, number ${t.index}`;
  if (t.kind === 2) return `what every operator gave at layer ${t.layer}, row ${t.row}`;
  if (t.kind === 5) return t.layer ? 'the tokens of the answer' : 'the tokens of the prompt';
  return `layer ${t.layer}, row ${t.row}, operator ${t.op}: ${kind} ${t.index}`;
}

/** Every challenge there was, the latest first. */
export async function cases(chain: Chain): Promise<Case[]> {
  const { challenges, market, trials } = chain.settings.contracts;
  const of = (name: string) => chain.logs(challenges, event(abi.challenges, name));
  const [demanded, answered, announced, proven, silent, results, created, lodged] = await Promise.all([
    of('Demanded'),
    of('Answered'),
    of('Announced'),
    of('FraudProven'),
    of('TimedOut'),
    chain.logs(market, event(abi.market, 'ResultSubmitted')),
    chain.logs(market, event(abi.market, 'JobCreated')),
    chain.logs(trials, event(abi.trials, 'ReceiptLodged')),
  ]);
  const found = new Map<bigint, Case>();
  const at = (job: bigint) => {
    const known = found.get(job);
    if (known) return known;
    const fresh: Case = { job, node: null, model: null, positions: null, prompt: null, steps: [], proof: null, silent: false };
    found.set(job, fresh);
    return fresh;
  };
  const step = (log: any, what: Step['what'], by: Address, text: string) =>
    at(log.args.jobId).steps.push({ block: log.blockNumber, tx: log.transactionHash, what, by, text });
  for (const l of demanded) step(l, 'demand', l.args.payer, target(l.args.target));
  for (const l of answered) {
    step(l, 'answer', l.args.by, `${target(l.args.target)}: ${(l.args.data.length - 2) / 2} bytes`);
  }
  for (const l of announced) step(l, 'announcement', l.args.by, 'a claim, sealed');
  for (const l of proven) {
    const c = l.args.claim;
    step(l, 'proof', l.args.by, `layer ${c.layer}, row ${c.row}, operator ${c.op}, element ${c.element}`);
    at(l.args.jobId).proof = { ...c, claimed: l.args.claimed, computed: l.args.computed };
  }
  for (const l of silent) {
    step(l, 'silence', l.args.payer, 'a demand was not answered in time');
    at(l.args.jobId).silent = true;
  }
  const tokens = (hex: string) => (hex.length - 2) / 8;
  for (const l of created) {
    const c = found.get(l.args.jobId);
    if (c) [c.model, c.prompt] = [l.args.modelId, tokens(l.args.promptTokens)];
  }
  for (const l of results) {
    const c = found.get(l.args.jobId);
    if (c) [c.node, c.positions] = [l.args.node, (c.prompt ?? 0) + tokens(l.args.outputTokens) - 1];
  }
  for (const l of lodged) {
    const c = found.get(l.args.jobId);
    const r = l.args.receipt;
    if (c) [c.node, c.model, c.prompt, c.positions] = [l.args.node, r.modelId, r.nIn, r.nIn + r.nOut - 1];
  }
  const rank = { demand: 0, answer: 1, announcement: 2, proof: 3, silence: 4 };
  for (const c of found.values()) {
    c.steps.sort((a, b) => Number(a.block - b.block) || rank[a.what] - rank[b.what]);
  }
  return [...found.values()].sort((a, b) => Number(b.steps.at(-1)!.block - a.steps.at(-1)!.block));
}

export interface Totals {
  nodes: number;
  jobs: number;
  paidJobs: number;
  batches: number;
  redeemed: bigint;
  released: number;
  slashed: number;
  convicted: number;
  burned: bigint;
}

export async function totals(chain: Chain): Promise<Totals> {
  const { nodes, market, channels } = chain.settings.contracts;
  const [registered, created, final, slashed, redeemed, released, convicted] = await Promise.all([
    chain.logs(nodes, event(abi.nodes, 'NodeUpdated')),
    chain.logs(market, event(abi.market, 'JobCreated')),
    chain.logs(market, event(abi.market, 'JobFinalized')),
    chain.logs(market, event(abi.market, 'JobSlashed')),
    chain.logs(channels, event(abi.channels, 'BatchRedeemed')),
    chain.logs(channels, event(abi.channels, 'BatchReleased')),
    chain.logs(channels, event(abi.channels, 'NodeConvicted')),
  ]);
  const sum = (logs: any[], field: string) => logs.reduce((all: bigint, l) => all + l.args[field], 0n);
  return {
    nodes: new Set(registered.map((l) => l.args.node)).size,
    jobs: created.length,
    paidJobs: final.length,
    batches: redeemed.length,
    redeemed: sum(redeemed, 'amount'),
    released: released.length,
    slashed: slashed.length,
    convicted: convicted.length,
    burned: sum(slashed, 'burned') + sum(convicted, 'burned'),
  };
}

export interface Pending {
  batch: bigint;
  amount: bigint;
  until: number;
}

export interface Earnings {
  node: NodeRow;
  market: bigint;
  channels: bigint;
  pending: Pending[];
  paid: bigint;
}

export async function earnings(chain: Chain, who: Address): Promise<Earnings> {
  const reader = chain.reader!;
  const c = chain.settings.contracts;
  const [row, due, balance, batches, released] = await Promise.all([
    node(chain, who),
    reader.readContract({ address: c.market, abi: abi.market, functionName: 'withdrawable', args: [who] }),
    reader.readContract({ address: c.channels, abi: abi.channels, functionName: 'balanceOf', args: [who] }),
    chain.logs(c.channels, event(abi.channels, 'BatchRedeemed'), { node: who }),
    chain.logs(c.channels, event(abi.channels, 'BatchReleased'), { node: who }),
  ]);
  const pending: Pending[] = [];
  for (const { args } of batches) {
    const b = await reader.readContract({ address: c.channels, abi: abi.channels, functionName: 'batch', args: [args.batchId] });
    if (b.state === 1) pending.push({ batch: args.batchId, amount: b.amount, until: Number(b.lodgeEnd) });
  }
  const paid = released.reduce((all: bigint, l) => all + l.args.amount, 0n);
  return { node: row, market: due, channels: balance, pending, paid };
}
