// The chain, read through the gateway's RPC or the wallet, and written through the wallet alone.
import {
  createPublicClient,
  createWalletClient,
  custom,
  http,
  numberToHex,
  parseSignature,
  toHex,
  type AbiEvent,
  type Address,
  type Hex,
  type PublicClient,
  type WalletClient,
} from 'viem';
import * as abi from './abi';
import type { Settings } from './gateway';

interface Provider {
  request(args: { method: string; params?: unknown[] }): Promise<any>;
  on?(event: string, listener: (value: any) => void): void;
}

declare global {
  interface Window {
    ethereum?: Provider;
  }
}

/** Blocks that are read again: deeper reorganisations want a page that is loaded anew. */
const OVERLAP = 64n;

export class Chain {
  account = $state<Address | null>(null);
  /** Of the connected account: in the wallet, and deposited. */
  balance = $state(0n);
  deposited = $state(0n);
  /** The chain's clock, second by second. */
  now = $state(Math.floor(Date.now() / 1000));
  readonly settings: Settings;
  readonly reader: PublicClient | null;
  #wallet: WalletClient | null = null;
  #ahead = 0;
  /** Logs by contract, event and arguments, up to a block. */
  #read = new Map<string, { to: bigint; found: any[] }>();

  constructor(settings: Settings) {
    this.settings = settings;
    const transport = settings.rpc ? http(settings.rpc) : window.ethereum ? custom(window.ethereum) : null;
    this.reader = transport ? createPublicClient({ transport, pollingInterval: 1000 }) : null;
    window.ethereum?.on?.('accountsChanged', (accounts: Address[]) => {
      this.account = accounts[0] ?? null;
      void this.refresh();
    });
    setInterval(() => (this.now = Math.floor(Date.now() / 1000) + this.#ahead), 1000);
    void this.clock();
  }

  get hasWallet(): boolean {
    return Boolean(window.ethereum);
  }

  /** A devnet's clock may be far from this machine's. */
  async clock() {
    const block = await this.reader?.getBlock().catch(() => null);
    if (block) this.#ahead = Number(block.timestamp) - Math.floor(Date.now() / 1000);
  }

  async connect() {
    const provider = window.ethereum;
    if (!provider) throw new Error('no wallet is in this browser: install one that is an EIP-1193 provider');
    const accounts: Address[] = await provider.request({ method: 'eth_requestAccounts' });
    const own = Number(await provider.request({ method: 'eth_chainId' }));
    if (own !== this.settings.contracts.chainId) {
      await provider.request({
        method: 'wallet_switchEthereumChain',
        params: [{ chainId: numberToHex(this.settings.contracts.chainId) }],
      });
    }
    this.account = accounts[0] ?? null;
    this.#wallet = createWalletClient({ transport: custom(provider) });
    await this.refresh();
  }

  async refresh() {
    const { account, reader } = this;
    if (!account || !reader) return;
    const { token, channels } = this.settings.contracts;
    [this.balance, this.deposited] = await Promise.all([
      reader.readContract({ address: token, abi: abi.token, functionName: 'balanceOf', args: [account] }),
      reader.readContract({ address: channels, abi: abi.channels, functionName: 'balanceOf', args: [account] }),
    ]);
  }

  /** Sends a transaction from the wallet and waits until it is mined. */
  async send(address: Address, abi: readonly unknown[], functionName: string, args: readonly unknown[]): Promise<Hex> {
    const { account, reader } = this;
    if (!account || !reader || !this.#wallet) throw new Error('connect a wallet first');
    // Simulated first: a refusal then has the contract's own words, and costs nothing.
    const { request } = await reader.simulateContract({ account, address, abi: abi as any, functionName, args: args as any });
    const hash = await this.#wallet.writeContract({ ...(request as any), chain: null });
    const mined = await reader.waitForTransactionReceipt({ hash });
    if (mined.status !== 'success') throw new Error(`${functionName} failed in block ${mined.blockNumber}`);
    await this.refresh();
    return hash;
  }

  /** Deposits with a signature where the token takes one (EIP-2612), otherwise with an approval. */
  async deposit(amount: bigint, step: (what: string) => void) {
    const { token, channels } = this.settings.contracts;
    const { account, reader } = this;
    if (!account || !reader || !this.#wallet) throw new Error('connect a wallet first');
    const domain = await reader
      .readContract({ address: token, abi: abi.token, functionName: 'eip712Domain' })
      .catch(() => null);
    if (domain) {
      step('sign the permit in your wallet');
      const [, name, version, chainId, verifyingContract] = domain;
      const nonce = await reader.readContract({ address: token, abi: abi.token, functionName: 'nonces', args: [account] });
      const deadline = BigInt(this.now + 3600);
      const signature = await this.#wallet.signTypedData({
        account,
        domain: { name, version, chainId: Number(chainId), verifyingContract },
        types: {
          Permit: [
            { name: 'owner', type: 'address' },
            { name: 'spender', type: 'address' },
            { name: 'value', type: 'uint256' },
            { name: 'nonce', type: 'uint256' },
            { name: 'deadline', type: 'uint256' },
          ],
        },
        primaryType: 'Permit',
        message: { owner: account, spender: channels, value: amount, nonce, deadline },
      });
      const { r, s, yParity } = parseSignature(signature);
      step('deposit');
      await this.send(channels, abi.channels, 'depositWithPermit', [amount, deadline, 27 + yParity, r, s]);
      return;
    }
    const allowed = await reader.readContract({
      address: token,
      abi: abi.token,
      functionName: 'allowance',
      args: [account, channels],
    });
    if (allowed < amount) {
      step('allow the channels contract to take the deposit');
      await this.send(token, abi.token, 'approve', [channels, amount]);
    }
    step('deposit');
    await this.send(channels, abi.channels, 'deposit', [amount]);
  }

  /** Opens a channel to a node whose vouchers the gateway signs, depositing what is missing. */
  async open(node: Address, amount: bigint, step: (what: string) => void) {
    await this.refresh();
    if (this.deposited < amount) await this.deposit(amount - this.deposited, step);
    step('open the channel');
    const salt = toHex(crypto.getRandomValues(new Uint8Array(32)));
    await this.send(this.settings.contracts.channels, abi.channels, 'open', [node, this.settings.signer, amount, salt]);
  }

  /** All logs of an event; a server that limits ranges is asked for halves. What was read before is not read again, but for the last
   * blocks, which a reorganisation may have changed. */
  async logs<const E extends AbiEvent>(address: Address, event: E, args?: Record<string, unknown>) {
    const reader = this.reader;
    if (!reader) throw new Error('nothing to read the chain with: connect a wallet');
    const read = async (from: bigint, to: bigint): Promise<any[]> => {
      try {
        return await reader.getLogs({ address, event, args: args as any, fromBlock: from, toBlock: to, strict: true });
      } catch (e) {
        if (to <= from) throw e;
        const middle = (from + to) / 2n;
        return [...(await read(from, middle)), ...(await read(middle + 1n, to))];
      }
    };
    const name = [address, event.name, ...Object.values(args ?? {})].join();
    const last = await reader.getBlockNumber();
    const before = this.#read.get(name);
    const first = BigInt(this.settings.contracts.block);
    // A chain that is shorter than what was read is another chain.
    const from = before && before.to <= last && before.to - OVERLAP > first ? before.to - OVERLAP : first;
    const kept = before && from > first ? before.found.filter((log) => log.blockNumber < from) : [];
    const found = [...kept, ...(await read(from, last))];
    this.#read.set(name, { to: last, found });
    return found;
  }
}

/** The event of this name. */
export function event(of: readonly any[], name: string): AbiEvent {
  return of.find((item) => item.type === 'event' && item.name === name) as AbiEvent;
}
