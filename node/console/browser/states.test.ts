// States that pass quickly, or that only something broken brings: a prompt that is read, an answer that loses its nodes, downloads.

import { accessible, expect, picture, test } from './nodes'
import { event, job, peer, pool, StandIn, status } from './stand-in'

const MIB = 1 << 20

const chainOf = (...nodes: number[]) => nodes.map((index, at) => ({ peer: peer(index), layers: [20 * at, 20 * at + 20] }))

function models() {
  const model = { architecture: 'llama', layers: 40, context: 8192, vocabulary: 49_152, memory_bytes: 8 << 30, file_bytes: 8 << 30, session_bytes: 1 << 28 }
  return { models: [{ name: 'big', digest: 'd', state: 'ready', why: null, running: 2, waiting: 1, model }] }
}

test('prompts that are read, answers that lose their nodes, and downloads are shown as they go', async ({ page }) => {
  test.setTimeout(300_000)
  const why = 'stage 12D3KooWxyz is gone (the connection was closed)'
  const reading = job(4, { state: 'running', progress: { done: 0, total: 8153 }, prompt: { done: 1536, total: 4096 }, stages: chainOf(0, 1) })
  const lost = job(3, { stages: [], failovers: 1, failover: { from: chainOf(0, 1), to: [], why } })
  const moved = job(2, { stages: chainOf(0, 2), failovers: 1, failover: { from: chainOf(0, 1), to: chainOf(0, 2), why } })
  const download = job(1, { kind: 'download', subject: 'hf:OWNER/A-very-long-name-of-a-repository-GGUF/model-Q4_K_M.gguf', progress: { done: 312 * MIB, total: 740 * MIB }, prompt: { done: 0, total: 0 }, stages: [] })
  const failed = job(0, { state: 'failed', error: { kind: 'Unavailable', message: 'no node is left that can hold the model\'s layers; start another, or give one more memory' }, stages: [] })
  let pulls = 0
  const node = new StandIn(
    {
      '/api/pangea/status': status,
      '/api/pangea/pool': () => pool(['alpha', 'beta', 'gamma'], 2),
      '/api/pangea/jobs': () => [reading, lost, moved, download, failed],
      '/api/pangea/models': models,
      '/api/pangea/models/disk': () => ({ models: [], known: [{ name: 'gemma3-270m', size_bytes: 253_113_024, licence: 'Gemma' }] }),
      '/api/pangea/members': () => ({ pool: '01020304', open: false, holds_key: true, members: [] }),
      '/api/pangea/models/pull/cancel': () => ({ model: download.subject }),
    },
    {
      '/api/pangea/events': (response) => {
        response.write(event('job.failover', moved))
        response.write(event('job.lost', lost))
        return () => {}
      },
      '/api/pangea/models/pull': (response) => {
        pulls += 1
        response.write(event('progress', { phase: 'downloading', done_bytes: 312 * MIB, total_bytes: 740 * MIB }))
        return () => {}
      },
    },
  )
  await page.goto(await node.start())
  const running = page.getByRole('region', { name: 'Running' })
  await expect(running).toContainText('1,536 of 4,096 tokens of the prompt are read')
  await expect(running).toContainText('alpha (layers 0–19) → beta (layers 20–39)')
  await expect(running).toContainText('looking for other nodes')
  await expect(running).toContainText('→ alpha (layers 0–19) → gamma (layers 20–39)')
  await expect(running).toContainText('312 MiB of 740 MiB')
  // The counters of this node's own links stand still; the node says what passes between two others.
  await expect(page.locator('.graph .moving')).toHaveCount(1)
  await expect(page.locator('.graph .moving')).toContainText('→ 1.91 MiB/s ← 1.91 MiB/s')
  const links = page.getByRole('region', { name: 'Links' })
  await expect(links.getByRole('row', { name: /^beta gamma/ })).toContainText('1.91 MiB/s')
  for (const view of ['topology', 'activity/jobs', 'activity/events', 'models', 'chat']) {
    await page.goto(`${page.url().split('#')[0]}#/${view}`)
    if (view === 'activity/events') await expect(page.locator('.log')).toContainText('Job 3 has lost alpha (layers 0–19) → beta (layers 20–39)')
    // The page was opened while the download ran: it watches without having asked for it.
    if (view === 'models') await expect(page.getByRole('button', { name: 'Pause' })).toBeVisible()
    for (const [size, width, height] of [['wide', 1280, 850], ['phone', 360, 740]] as const) {
      await page.setViewportSize({ width, height })
      expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), view).toBeLessThanOrEqual(0)
      await accessible(page, size === 'wide' ? ['light', 'dark'] : ['light'])
      for (const colorScheme of ['light', 'dark'] as const) {
        await page.emulateMedia({ colorScheme })
        await picture(page, `states-${view.replace('/', '-')}-${size}-${colorScheme}`)
      }
    }
    await page.setViewportSize({ width: 1280, height: 850 })
  }
  expect(pulls).toBe(1)
  node.stop()
})
