// The page in a browser, with a wallet that signs real transactions. Started by crates/testkit/tests/page.rs, which runs the chain, a
// node, the gateway and the watcher; it says on stdin when the watcher has proven its case, and reads the result from stdout.
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';
import { createPublicClient, createWalletClient, http, numberToHex, parseAbi } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

const { gateway, rpc, key, shots, chromium: program } = JSON.parse(process.argv[2]);
const account = privateKeyToAccount(key);
const reader = createPublicClient({ transport: http(rpc), pollingInterval: 200 });
const wallet = createWalletClient({ account, transport: http(rpc) });
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const told = async () => JSON.parse((await lines.next()).value);
const tell = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const axe = createRequire(import.meta.url).resolve('axe-core/axe.min.js');
const settings = await (await fetch(`${gateway}/page.json`)).json();
mkdirSync(shots, { recursive: true });

/** What the page's wallet is asked. */
async function request({ method, params }) {
  switch (method) {
    case 'eth_requestAccounts':
    case 'eth_accounts':
      return [account.address];
    case 'eth_chainId':
      return numberToHex(await reader.getChainId());
    case 'eth_sendTransaction': {
      const { to, data, value } = params[0];
      return wallet.sendTransaction({ to, data, value: value ? BigInt(value) : 0n, chain: null });
    }
    case 'eth_signTypedData_v4':
      return account.signTypedData(JSON.parse(params[1]));
    default:
      return reader.request({ method, params });
  }
}

const browser = await chromium.launch({
  executablePath: program,
  args: [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
  ],
});
const complaints = [];

async function open(options) {
  const context = await browser.newContext(options);
  await context.exposeFunction('askWallet', async (asked) => {
    try {
      return { value: (await request(asked)) ?? null };
    } catch (e) {
      return { error: e.shortMessage ?? e.message, code: e.code };
    }
  });
  await context.addInitScript(() => {
    window.ethereum = {
      async request(asked) {
        const { value, error, code } = await window.askWallet(asked);
        if (error) throw Object.assign(new Error(error), { code });
        return value;
      },
      on() {},
    };
  });
  const page = await context.newPage();
  page.on('console', (m) => m.type() === 'error' && complaints.push(m.text()));
  page.on('pageerror', (e) => complaints.push(String(e)));
  return page;
}

async function accessible(page, where) {
  await page.evaluate(await (await import('node:fs/promises')).readFile(axe, 'utf8'));
  const { violations } = await page.evaluate(() => window.axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa'] }));
  const found = violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.target.join(' ')).join(', ')}`);
  assert.deepEqual(found, [], `${where} is not accessible`);
}

const shot = (page, name) => page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });

/** Presses Tab until an element that matches has the focus. */
async function tabTo(page, selector) {
  for (let i = 0; i < 60; i++) {
    await page.keyboard.press('Tab');
    if (await page.evaluate((s) => document.activeElement?.matches(s), selector)) return;
  }
  assert.fail(`the keyboard does not reach ${selector}`);
}

let page;
try {
  page = await open({ viewport: { width: 1180, height: 900 }, colorScheme: 'light' });
  await page.goto(gateway);
  await page.getByRole('button', { name: 'Connect wallet' }).click();
  await page.getByTestId('wallet').waitFor();

  // Deposit with a permit, and a channel whose vouchers the gateway signs.
  await page.locator('select').first().locator('option').first().waitFor({ state: 'attached' });
  await page.getByLabel('Amount').fill('12.5');
  await page.getByRole('button', { name: 'Deposit and open' }).click();
  await page.getByText('12.5 SWD available to this gateway').waitFor({ timeout: 30000 });
  await page.locator('main table tbody tr').first().waitFor({ state: 'attached' });

  // Queue and device of the node, which the gateway passes on.
  await page.getByRole('link', { name: 'Nodes' }).click();
  await page.getByTestId('node').getByRole('link').first().click();
  await page.getByTestId('machine').getByText(/^0 of [1-9]/).waitFor({ timeout: 30000 });
  await page.getByTestId('machine').getByText('cpu', { exact: true }).waitFor();
  await page.getByRole('link', { name: 'Chat', exact: true }).click();

  // By the keyboard alone.
  await tabTo(page, 'textarea');
  await page.keyboard.type('What is the capital of France?');
  await page.keyboard.press('Enter');
  const oath = page.getByTestId('oath');
  await oath.waitFor({ timeout: 60000 });
  const answer = (await page.getByTestId('answer').first().textContent()).replace(/^Node/, '');
  const [receipt, root] = await Promise.all(['receipt', 'trace-root'].map((id) => page.getByTestId(id).first().textContent()));
  await page.getByTestId('standing').filter({ hasText: 'redeemed in batch 1' }).waitFor({ timeout: 30000 });
  await accessible(page, 'the chat');
  await shot(page, 'chat-light');
  tell({ answer, receipt, root });

  // The watcher has brought the receipt to trial and proven it false.
  const proven = await told();
  await page.getByTestId('standing').filter({ hasText: 'on trial' }).waitFor({ timeout: 30000 });
  await page.getByRole('link', { name: 'See the trial' }).click();
  await page.getByTestId('claimed').waitFor({ timeout: 30000 });
  const numbers = await Promise.all(['claimed', 'computed'].map((id) => page.getByTestId(id).textContent()));
  assert.deepEqual(numbers, [String(proven.claimed), String(proven.computed)]);
  const drawn = await page.locator('svg.descent').getAttribute('aria-label');
  assert.match(drawn, new RegExp(`Layer ${proven.layer} of .*Position ${proven.position} of .*${proven.opcode}.*Element ${proven.element} `));
  assert.deepEqual(await page.getByTestId('step').evaluateAll((all) => all.map((li) => li.className)), ['demand', 'answer', 'announcement', 'proof']);
  await accessible(page, 'the descent');
  await shot(page, 'descent-light');

  await page.getByRole('link', { name: 'Nodes' }).click();
  await page.getByTestId('node').filter({ hasText: 'convicted' }).waitFor();
  await accessible(page, 'the nodes');
  await shot(page, 'nodes-light');
  await page.getByTestId('node').getByRole('link').first().click();
  await page.getByTestId('stake').filter({ hasText: /^0 SWD$/ }).waitFor();
  await accessible(page, 'the operator');

  // What the conviction has given back is taken from the books.
  const balanceOf = (who) =>
    reader.readContract({ address: settings.contracts.token, abi: parseAbi(['function balanceOf(address) view returns (uint256)']), functionName: 'balanceOf', args: [who] });
  const had = await balanceOf(account.address);
  await page.goto(`${gateway}/#/operator/${account.address}`);
  const owed = page.locator('tr', { has: page.getByRole('rowheader', { name: 'channels' }) });
  await owed.getByRole('button', { name: 'Withdraw' }).click();
  await owed.getByText(/^0 SWD$/).waitFor({ timeout: 30000 });
  assert((await balanceOf(account.address)) - had > 10n ** 18n, 'nothing was withdrawn');
  assert(await owed.getByRole('button', { name: 'Withdraw' }).isDisabled());
  await page.getByRole('link', { name: 'Network' }).click();
  await page.locator('.tiles').getByText('Nodes convicted').waitFor();
  await accessible(page, 'the network');

  // Dark, on a phone: nothing is wider than the screen, and every colour can be read.
  const phone = await open({ viewport: { width: 360, height: 740 }, colorScheme: 'dark', hasTouch: true, isMobile: true });
  await phone.goto(gateway);
  await phone.getByRole('button', { name: 'Connect wallet' }).click();
  await phone.getByTestId('wallet').waitFor();
  for (const [view, ready] of [
    ['chat', () => phone.getByText('available to this gateway').waitFor()],
    ['nodes', () => phone.getByTestId('node').first().waitFor()],
    ['challenges', () => phone.getByTestId('case').first().waitFor()],
    [`challenges/${proven.job}`, () => phone.getByTestId('claimed').waitFor()],
    ['network', () => phone.locator('.tiles').waitFor()],
    [`operator/${proven.node}`, () => phone.getByTestId('stake').waitFor()],
  ]) {
    await phone.goto(`${gateway}/#/${view}`);
    await ready();
    const overflow = await phone.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.equal(overflow, 0, `${view} is ${overflow} pixels too wide`);
    await accessible(phone, `${view}, dark, on a phone`);
    await shot(phone, `${view.split('/')[0]}${view.includes('/') ? '-one' : ''}-phone-dark`);
  }
  assert.deepEqual(complaints, [], 'the console');
  tell({ done: true });
} catch (e) {
  console.error(await page?.locator('main').innerText().catch(() => ''), complaints);
  throw e;
} finally {
  await browser.close();
}
process.exit(0);
