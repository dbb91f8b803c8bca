// What a person does who has read no further than the first command of the README: runs it, opens the address that it shows, asks.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'

import type { Page } from '@playwright/test'

import { accessible, BINARY, expect, MODEL_FILE, needModel, test } from './nodes'

const REPOSITORY = join(import.meta.dirname, '../../..')

/** The console's usual port, which another program has here: the demo must show the one that it got instead. */
const USUAL_PORT = 52415

/** The first command of the README, as it is typed. */
function firstCommand(): string {
  const block = /```bash\n([^\n]+)/.exec(readFileSync(join(REPOSITORY, 'README.md'), 'utf8'))
  return (block?.[1] ?? '').replace(/\s+#.*$/, '')
}

/** A command on a terminal of its own, in a home that has never seen Pangea but has the model's file. */
class Terminal {
  readonly folder = mkdtempSync(join(tmpdir(), 'pangea-newcomer-'))
  private readonly child: ChildProcess
  readonly ended: Promise<number | null>
  output = ''

  constructor(command: string) {
    const [home, temporary] = [join(this.folder, 'home'), join(this.folder, 'tmp')]
    mkdirSync(join(home, '.pangea/models'), { recursive: true, mode: 0o700 })
    mkdirSync(temporary)
    // As if it had been downloaded before: nothing leaves this machine.
    symlinkSync(MODEL_FILE, join(home, '.pangea/models', basename(MODEL_FILE)))
    const own = Object.entries(process.env).filter(([name]) => name !== 'CI' && !name.startsWith('PANGEA_'))
    const env = { ...Object.fromEntries(own), HOME: home, TMPDIR: temporary, PANGEA_BIN: BINARY, TERM: 'xterm' }
    // `exec`: some shells stay beside the command and end by Ctrl-C themselves.
    const run = `exec ${command}`
    const args = process.platform === 'darwin' ? ['-q', '/dev/null', 'bash', '-c', run] : ['-qec', run, '/dev/null']
    this.child = spawn('script', args, { cwd: REPOSITORY, env, stdio: ['pipe', 'pipe', 'inherit'] })
    this.child.stdout?.on('data', (text) => (this.output += text))
    this.ended = new Promise((resolve) => this.child.once('exit', (code) => resolve(code)))
  }

  /** Types keys. */
  type(keys: string): void {
    this.child.stdin?.write(keys)
  }

  /** The processes that work in its folder for temporary files. */
  processes(): string[] {
    const all = execFileSync('ps', ['-A', '-o', 'pid=,command='], { encoding: 'utf8', maxBuffer: 1 << 24 }).split('\n')
    return all.filter((line) => line.includes(join(this.folder, 'tmp')) && line.includes(' node '))
  }

  leftBehind(): string[] {
    return readdirSync(join(this.folder, 'tmp'))
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true })
  }
}

let number = 0

/** What the page looks like at this step, in light and dark, wide and on a phone. */
async function step(page: Page, name: string): Promise<void> {
  number += 1
  for (const [size, width, height] of [['wide', 1280, 850], ['phone', 360, 740]] as const) {
    await page.setViewportSize({ width, height })
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme })
      await page.screenshot({ path: test.info().outputPath(`${number}-${name}-${size}-${colorScheme}.png`) })
    }
    expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), name).toBeLessThanOrEqual(0)
  }
  await page.setViewportSize({ width: 1280, height: 850 })
  await accessible(page)
}

test('from the first command of the README to a chat over two nodes', async ({ page }) => {
  needModel()
  test.setTimeout(300_000)
  const taken: Server = createServer().on('error', () => {})
  taken.listen(USUAL_PORT, '127.0.0.1')
  const command = firstCommand()
  expect(command).toBe('./scripts/setup.sh demo')
  const terminal = new Terminal(command)
  try {
    await expect.poll(() => terminal.output, { timeout: 150_000 }).toMatch(/Ctrl-C ends/)
    const [address = ''] = /http:\/\/\S+/.exec(terminal.output) ?? []
    expect(address).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/$/)
    expect(address).not.toContain(`:${USUAL_PORT}/`)
    expect(terminal.output).toMatch(/It says: .*Paris/)
    expect(terminal.processes()).toHaveLength(2)

    await page.goto(address)
    const invitation = page.getByRole('region', { name: /Chat with smollm2/ })
    await expect(invitation).toContainText('on 2 nodes, which answer together')
    await step(page, 'opened')

    await invitation.getByRole('textbox').fill('Why is the sky blue?')
    // Notes how long the answer is whenever it grows.
    await page.evaluate(() => {
      const lengths: number[] = []
      Object.assign(window, { lengths })
      const look = () => {
        const length = document.querySelector('.turn.assistant .markdown')?.textContent?.length ?? 0
        if (length > (lengths.at(-1) ?? 0)) lengths.push(length)
      }
      new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true })
    })
    await invitation.getByRole('button', { name: 'Ask' }).click()
    const answer = page.getByRole('article', { name: 'Answer of smollm2' })
    await expect(answer.locator('.markdown')).not.toBeEmpty({ timeout: 60_000 })
    await expect(answer.locator('.about .badge').first()).toHaveText(/unchecked|audited/, { timeout: 60_000 })
    const lengths = await page.evaluate(() => (window as unknown as { lengths: number[] }).lengths)
    expect(lengths.length, 'the text comes in pieces').toBeGreaterThan(5)
    // Two different nodes of the demo, with the layers of each.
    await expect(answer).toContainText(/(alpha|beta) \(layers 0–\d+\) → (?!\1)(alpha|beta) \(layers \d+–29\)/)
    await step(page, 'answered')

    await answer.getByRole('link', { name: /check receipt/ }).click()
    await expect(page.getByText('The chain of signatures holds.')).toBeVisible()
    await page.getByRole('button', { name: 'Compute the answer again' }).click()
    await expect(page.getByText('Every stage gave what the model gives.')).toBeVisible({ timeout: 60_000 })
    await expect(page.locator('.facts .badge')).toHaveText('audited')
    await step(page, 'receipt')

    terminal.type('\x03')
    expect(await terminal.ended).toBe(0)
    expect(terminal.output).toMatch(/nothing is left behind/)
    expect([terminal.processes(), terminal.leftBehind()]).toEqual([[], []])
    await expect(page.getByRole('alert')).toContainText('does not answer', { timeout: 20_000 })
  } finally {
    console.log(terminal.output.replaceAll('\r', ''))
    terminal.type('\x03')
    await terminal.ended
    terminal.remove()
    taken.close()
  }
})
