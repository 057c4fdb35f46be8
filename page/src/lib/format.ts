import { formatUnits } from 'viem';

/** Amounts, in whole tokens with at most six decimals. */
export function money(amount: bigint, decimals: number, symbol: string): string {
  const [whole = '0', fraction = ''] = formatUnits(amount, decimals).split('.');
  const short = fraction.slice(0, 6).replace(/0+$/, '');
  return `${whole.replace(/\B(?=(\d{3})+(?!\d))/g, ' ')}${short ? `.${short}` : ''} ${symbol}`;
}

export function short(hex: string): string {
  return hex.length > 14 ? `${hex.slice(0, 8)}…${hex.slice(-4)}` : hex;
}

/** How long until a second of the chain's clock. */
export function left(seconds: number): string {
  if (seconds <= 0) return 'over';
  const [d, h, m] = [Math.floor(seconds / 86400), Math.floor((seconds % 86400) / 3600), Math.floor((seconds % 3600) / 60)];
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${m} min`;
  if (m) return `${m} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds)} s`;
}

/** Numbers of jobs; a trial's has bit 63 set. */
export function caseName(id: bigint): string {
  const bit = 1n << 63n;
  return id & bit ? `Trial ${id ^ bit}` : `Job ${id}`;
}
