// Twenty nodes and a hundred events per second, from a stand-in of the node: the page draws as many frames as when nothing happens.
// And what the console weighs.

import { readdirSync, readFileSync } from 'node:fs'
import { createServer, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { extname, join } from 'node:path'
import { gzipSync } from 'node:zlib'

import { expect, picture, test } from './nodes'

const DIST = process.env.CONSOLE_DIST ?? join(import.meta.dirname, '../dist')
const TYPES: Record<string, string> = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' }
const NODES = 20
const EVENTS_PER_SECOND = 100

/** Bytes of all files of the console, compressed, at most. */
const BUDGET = 200_000

const peer = (index: number) => `12D3KooW${String(index).padStart(44, 'x')}`

function pool(tick: number) {
  const nodes = Array.from({ length: NODES }, (_, index) => ({
    peer: peer(index),
    name: `node-${index}`,
    local: index === 0,
    connected: true,
    master: index === 3,
    works: true,
    version: '0.1.0',
    numerics: 1,
    device: 'cpu/avx512',
    threads: 8,
    gflops: 400 + index,
    uptime_s: tick,
    memory_bytes: 16 << 30,
    held_bytes: index << 28,
    decode_bytes_per_s: 1e10,
    prompt_macs_per_s: 1e11,
    trust: 1,
    quarantined: false,
    why: '',
    sent_bytes: tick * 1e6,
    received_bytes: tick * 2e6,
    models: [{ name: 'big', digest: 'd', served: index === 0, whole: true, layers: 40, weight_bytes: 8 << 30 }],
    serving: [],
    stages: [{ model: 'd', name: 'big', layers: [2 * index, 2 * index + 2], epoch: 1 + (tick % 2), state: 'ready', done_bytes: 0, total_bytes: 0, why: '', tokens_per_s: 20 }],
  }))
  const links = nodes.flatMap(({ peer: from }) =>
    nodes.filter(({ peer: to }) => to !== from).map(({ peer: to }) => ({ from, to, rtt_ms: 0.2, bytes_per_s: 1e9, transport: 'quic', found_by: 'mdns' })),
  )
  return { local: peer(0), master: peer(3), nodes, links, placements: [], refusals: [], absent: [] }
}

function job(id: number, state: string) {
  return {
    id,
    kind: 'generation',
    subject: 'big',
    owner: { api: 'http', client: null },
    state,
    progress: { done: id % 50, total: 50 },
    submitted_unix_ms: Date.now(),
    started_unix_ms: Date.now(),
    ended_unix_ms: null,
    deadline_unix_ms: null,
    verdict: null,
    error: null,
  }
}

/** A node that only talks; `events`: whether anything happens. */
function standIn(events: boolean): { server: Server; sent: () => number } {
  let [tick, sent] = [0, 0]
  const answers: Record<string, () => unknown> = {
    '/api/pangea/status': () => ({ peer: peer(0), name: 'node-0', version: '0.1.0', memory_used_bytes: 1, memory_limit_bytes: 2, memory: [], uptime_s: tick }),
    '/api/pangea/pool': () => pool(events ? (tick += 1) : 1),
    '/api/pangea/jobs': () => [],
    '/api/pangea/models': () => ({ models: [] }),
    '/api/pangea/members': () => ({ pool: '01020304', open: false, holds_key: true, members: [] }),
  }
  const stream = (response: ServerResponse) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.write(': here\n\n')
    const timer = setInterval(() => {
      for (let count = 0; events && count < EVENTS_PER_SECOND / 20; count += 1) {
        sent += 1
        response.write(`event: progress\ndata: ${JSON.stringify(job(sent >> 1, sent % 2 === 0 ? 'running' : 'waiting'))}\n\n`)
      }
    }, 50)
    response.on('close', () => clearInterval(timer))
  }
  const server = createServer((request, response) => {
    const path = request.url ?? '/'
    if (path === '/api/pangea/events') return stream(response)
    if (path === '/metrics') return response.end('pangea_jobs_live 1\n')
    const answer = answers[path]
    if (answer) return response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(answer()))
    const file = path === '/' ? 'index.html' : path.replace('/console/', '')
    response.writeHead(200, { 'content-type': TYPES[extname(file)] ?? 'text/plain' }).end(readFileSync(join(DIST, file)))
  })
  return { server, sent: () => sent }
}

test('twenty nodes and a hundred events per second cost no frame', async ({ page }) => {
  const frames: number[] = []
  for (const events of [false, true]) {
    const { server, sent } = standIn(events)
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
    await page.goto(url)
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
    server.closeAllConnections()
    server.close()
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
