// The gateway that serves this page: its description, its models, and chat as OpenAI's API has it.
import type { Address, Hex } from 'viem';

export interface ModelShape {
  name: string;
  id: Hex;
  layers: number;
  vocabulary: number;
  /** Opcodes of the embedding, of a block and of the head. */
  sections: string[][];
}

export const CONTRACTS = ['token', 'models', 'nodes', 'market', 'channels', 'trials', 'challenges'] as const;
export type Contract = (typeof CONTRACTS)[number];

export interface Settings {
  /** Where to read the chain; none: through the wallet. */
  rpc: string | null;
  signer: Address;
  symbol: string;
  decimals: number;
  contracts: { chainId: number; block: number } & Record<Contract, Address>;
  models: ModelShape[];
}

export interface Oath {
  node: Address;
  price: string;
  traceRoot: Hex;
  /** One for each node that took part; the last answered to the end. */
  receipts: { receiptDigest: Hex; receipt: { channelId: Hex; sequence: number } }[];
}

export interface Spoken {
  text: string;
  oath: Oath | null;
  tokens: number;
  seconds: number;
  firstToken: number;
}

export interface Message {
  role: 'user' | 'assistant';
  content: string;
}

/** A refusal in the gateway's own words. */
export class Refused extends Error {
  constructor(
    message: string,
    readonly code: string,
    readonly status: number,
  ) {
    super(message);
  }
}

let key = sessionStorage.getItem('sworn-key') ?? '';

export function apiKey(): string {
  return key;
}

export function setApiKey(value: string) {
  key = value.trim();
  sessionStorage.setItem('sworn-key', key);
}

async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key) headers.set('authorization', `Bearer ${key}`);
  const response = await fetch(path, { ...init, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const error = body?.error;
  throw new Refused(error?.message ?? `the gateway says ${response.status}`, error?.code ?? '', response.status);
}

export async function settings(): Promise<Settings> {
  return (await ask('/page.json')).json();
}

/** Waits until the gateway has heard that a node can be paid for the model: it looks for new channels every few seconds. */
export async function payable(model: string, node: Address, patience = 30_000): Promise<boolean> {
  const until = Date.now() + patience;
  while (Date.now() < until) {
    const { sworn } = await (await ask(`/v1/models/${model}`)).json();
    if (sworn.offers.some((o: { node: Address }) => o.node.toLowerCase() === node.toLowerCase())) return true;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  return false;
}

/** What a node says of itself. */
export interface NodeInfo {
  engines: { backend: string; adapter: string }[];
  answersRunning: number;
  answersAtMost: number;
  jobsRunning: number;
  jobsWaiting: number;
  version: string;
}

/** What it says, or why that is not known. */
export async function nodeInfo(node: Address): Promise<{ info: NodeInfo | null; why: string | null }> {
  return (await ask(`/v1/nodes/${node}`)).json();
}

/** Asks, and tells of every piece as it comes. */
export async function chat(
  model: string,
  messages: Message[],
  options: { temperature: number; maxTokens: number; signal: AbortSignal },
  piece: (text: string) => void,
): Promise<Spoken> {
  const start = performance.now();
  const response = await ask('/v1/chat/completions', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    signal: options.signal,
    body: JSON.stringify({
      model,
      messages,
      temperature: options.temperature,
      max_tokens: options.maxTokens,
      stream: true,
      stream_options: { include_usage: true },
    }),
  });
  const spoken: Spoken = { text: '', oath: null, tokens: 0, seconds: 0, firstToken: 0 };
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (!reader) throw new Error('this browser does not stream');
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    rest += value;
    const events = rest.split('\n\n');
    rest = events.pop() ?? '';
    for (const event of events) {
      const data = event
        .split('\n')
        .filter((line) => line.startsWith('data:'))
        .map((line) => line.slice(5).trim())
        .join('\n');
      if (!data || data === '[DONE]') continue;
      const body = JSON.parse(data);
      if (body.error) throw new Refused(body.error.message, body.error.code ?? '', 200);
      const text: string = body.choices?.[0]?.delta?.content ?? '';
      if (text) {
        if (!spoken.firstToken) spoken.firstToken = (performance.now() - start) / 1000;
        spoken.text += text;
        piece(text);
      }
      if (body.usage) spoken.tokens = body.usage.completion_tokens;
      if (body.sworn) spoken.oath = body.sworn;
    }
  }
  spoken.seconds = (performance.now() - start) / 1000;
  return spoken;
}
