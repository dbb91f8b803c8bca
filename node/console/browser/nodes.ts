// Real nodes for the tests, and what every page must keep: no broken promise of the policy, no error, no request elsewhere.

import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { AxeBuilder } from '@axe-core/playwright'
import { test as base, expect, type Page } from '@playwright/test'

export const BINARY = process.env.PANGEA_BIN ?? join(import.meta.dirname, '../../../target/release/pangea')

/** Name of the model that the tests ask, and its file. */
export const MODEL = 'smollm2'
const FILE = 'SmolLM2-135M-Instruct.Q4_1.gguf'
/** The file of the model that the tests ask. */
export const MODEL_FILE = join(process.env.PANGEA_TEST_MODELS ?? join(process.env.HOME ?? '', '.cache/pangea/test-models'), FILE)

/** Where screenshots go; nowhere unless they are asked for. */
const PICTURES = process.env.CONSOLE_PICTURES

export const hasModel = existsSync(MODEL_FILE)

/** Skips a test that needs the model where there is none; fails it where nothing may be skipped. */
export function needModel(): void {
  if (hasModel) return
  if (process.env.PANGEA_TESTS_NO_SKIP) throw new Error(`${MODEL_FILE} is missing`)
  console.log(`SKIPPED: ${test.info().title}: ${MODEL_FILE} is missing`)
  test.skip()
}

export interface Node {
  name: string
  /** `http://127.0.0.1:PORT`. */
  url: string
  /** Its libp2p address over TCP. */
  address: string
  rpc: string
  home: string
  log: () => string
  stop: () => Promise<void>
}

interface Wanted {
  args?: string[]
  /** `own`: the node has a pool of its own. */
  pool?: 'shared' | 'own'
  /** Whether the model lies in the node's folder. */
  model?: boolean
  env?: Record<string, string>
}

/** Nodes on this machine that belong together. */
export class Cluster {
  private readonly folder = mkdtempSync(join(tmpdir(), 'pangea-console-'))
  private readonly running: Node[] = []

  constructor() {
    writeFileSync(join(this.folder, 'pool.key'), randomBytes(32).toString('hex'), { mode: 0o600 })
  }

  async node(name: string, { args = [], pool = 'shared', model = false, env = {} }: Wanted = {}): Promise<Node> {
    const home = join(this.folder, name)
    mkdirSync(join(home, 'models'), { recursive: true, mode: 0o700 })
    if (model && hasModel) symlinkSync(MODEL_FILE, join(home, 'models', FILE))
    const key = pool === 'shared' ? ['--pool-key', join(this.folder, 'pool.key')] : []
    const fixed = ['--listen', '/ip4/127.0.0.1/tcp/0', '--rpc-addr', '127.0.0.1:0', '--api-addr', '127.0.0.1:0', '--no-mdns']
    const child: ChildProcess = spawn(BINARY, ['node', '--name', name, '--data-dir', home, '--threads', '1', ...fixed, ...key, ...args], {
      env: { ...process.env, PANGEA_HOME: home, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let log = ''
    const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()))
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', (text) => (log += text))
    const listening = () => /Listening on (\S+\/tcp\/\S+)/.exec(log)?.[1]
    await expect.poll(() => listening() ?? (child.exitCode === null ? '' : log), { timeout: 20_000 }).toContain('/p2p/')
    const { api, rpc } = JSON.parse(readFileSync(join(home, 'node.json'), 'utf8'))
    const node: Node = {
      name,
      url: `http://${api}`,
      address: listening() ?? '',
      rpc,
      home,
      log: () => log,
      stop: async () => {
        child.kill('SIGTERM')
        await ended
      },
    }
    this.running.push(node)
    return node
  }

  async stop(): Promise<void> {
    await Promise.all(this.running.map((node) => node.stop()))
    rmSync(this.folder, { recursive: true, force: true })
  }
}

/** A folder of built files that are tried in place of those of the binary, under the same headers: no build of the binary is needed. */
const DIST = process.env.CONSOLE_DIST

async function tryFiles(page: Page, folder: string): Promise<void> {
  const isFile = (url: URL) => url.pathname === '/' || url.pathname.startsWith('/console/')
  await page.route(isFile, async (route) => {
    const { 'if-none-match': _, ...headers } = route.request().headers()
    const response = await route.fetch({ headers }).catch(() => null)
    if (!response) return route.abort()
    const name = new URL(route.request().url()).pathname.replace('/console/', '')
    return route.fulfill({ response, body: readFileSync(join(folder, name === '/' ? 'index.html' : name)) })
  })
}

/** Whatever a page did that it must not. */
async function watched(page: Page): Promise<string[]> {
  const faults: string[] = []
  page.on('pageerror', (error) => faults.push(`error: ${error.message}`))
  page.on('console', (message) => {
    // A request that the node refuses, as some tests want, is told by the browser as well.
    if (message.type() === 'error' && !/Failed to load resource/.test(message.text())) faults.push(message.text())
  })
  page.on('request', (request) => {
    if (!/^(http:\/\/127\.0\.0\.1:|blob:http:\/\/127\.0\.0\.1:|about:blank)/.test(request.url())) faults.push(`request to ${request.url()}`)
  })
  return faults
}

export const test = base.extend<{ faults: string[] }, { cluster: Cluster }>({
  cluster: [
    async ({}, use) => {
      const cluster = new Cluster()
      await use(cluster)
      await cluster.stop()
    },
    { scope: 'worker' },
  ],
  faults: [
    async ({ page }, use) => {
      if (DIST) await tryFiles(page, DIST)
      const faults = await watched(page)
      await use(faults)
      expect(faults).toEqual([])
    },
    { auto: true },
  ],
})

export { expect }

/** Nobody is kept out: axe finds nothing, in light and dark. */
export async function accessible(page: Page, schemes: ('light' | 'dark')[] = ['light', 'dark']): Promise<void> {
  for (const colorScheme of schemes) {
    await page.emulateMedia({ colorScheme })
    const { violations } = await new AxeBuilder({ page }).analyze()
    expect(violations.map(({ id, nodes }) => `${colorScheme}: ${id}: ${nodes.map(({ html, any }) => `${html} ${any.map(({ message }) => message).join()}`).join('\n')}`)).toEqual([])
  }
  await page.emulateMedia({ colorScheme: 'light' })
}

/** Stores what the page looks like, where pictures are asked for. */
export async function picture(page: Page, name: string): Promise<void> {
  if (PICTURES) await page.screenshot({ path: join(PICTURES, `${name}.png`) })
}
