// Twenty nodes and a hundred events per second, from a stand-in of the node: the page draws as many frames as when nothing happens.
// And what the console weighs.

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'

import { expect, picture, test } from './nodes'
import { DIST, event, job, peer, pool, StandIn, status } from './stand-in'

const NODES = 20
const EVENTS_PER_SECOND = 100

/** Bytes of all files of the console, compressed, at most. */
const BUDGET = 200_000

const NAMES = Array.from({ length: NODES }, (_, index) => `node-${index}`)

/** `events`: whether anything happens. */
function standIn(events: boolean): { node: StandIn; sent: () => number } {
  let [tick, sent] = [0, 0]
  const answers = {
    '/api/pangea/status': status,
    '/api/pangea/pool': () => pool(NAMES, events ? (tick += 1) : 1),
    '/api/pangea/jobs': () => [],
    '/api/pangea/models': () => ({ models: [] }),
    '/api/pangea/members': () => ({ pool: '01020304', open: false, holds_key: true, members: [] }),
  }
  const node = new StandIn(answers, {
    '/api/pangea/events': (response) => {
      const timer = setInterval(() => {
        for (let count = 0; events && count < EVENTS_PER_SECOND / 20; count += 1) {
          sent += 1
          const stages = [{ peer: peer(sent % NODES), layers: [0, 40] }]
          response.write(event('job.progress', job(sent >> 1, { state: sent % 2 === 0 ? 'running' : 'waiting', stages })))
        }
      }, 50)
      return () => clearInterval(timer)
    },
  })
  return { node, sent: () => sent }
}

test('twenty nodes and a hundred events per second cost no frame', async ({ page }) => {
  const frames: number[] = []
  for (const events of [false, true]) {
    const { node, sent } = standIn(events)
    await page.goto(await node.start())
    await expect(page.locator('.node')).toHaveCount(NODES)
    const before = sent()
    const [count, longest] = await page.evaluate(async () => {
      let [count, longest, last] = [0, 0, performance.now()]
      const end = last + 3000
      while (last < end) {
        const now = await new Promise<number>((resolve) => requestAnimationFrame(resolve))
        longest = Math.max(longest, now - last)
        last = now
        count += 1
      }
      return [count, longest]
    })
    frames.push(count)
    const paint = await page.evaluate(() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0)
    console.log(`${events ? sent() - before : 0} events in 3 s: ${count} frames, the longest ${longest.toFixed(1)} ms; first paint after ${paint.toFixed(0)} ms`)
    if (events) {
      expect(sent() - before).toBeGreaterThan(EVENTS_PER_SECOND)
      await picture(page, 'crowd')
    }
    await page.goto('about:blank')
    node.stop()
  }
  const [idle = 0, busy = 0] = frames
  expect(busy).toBeGreaterThan(0.8 * idle)
})

test('the whole console fits into its budget', () => {
  const sizes = readdirSync(DIST).map((file) => gzipSync(readFileSync(join(DIST, file))).length)
  const total = sizes.reduce((sum, size) => sum + size, 0)
  console.log(`${sizes.length} files, ${total} bytes compressed`)
  expect(total).toBeLessThan(BUDGET)
})
