// A node that only talks: states of the console that real nodes pass through too quickly, or only when something breaks.

import { readFileSync } from 'node:fs'
import { createServer, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { extname, join } from 'node:path'

/** The built files of the console. */
export const DIST = process.env.CONSOLE_DIST ?? join(import.meta.dirname, '../dist')

const TYPES: Record<string, string> = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' }

export const peer = (index: number) => `12D3KooW${String(index).padStart(44, 'x')}`

/** What the node says at a path, as JSON. */
export type Answers = Record<string, () => unknown>

/** What the node goes on saying at a path, as server-sent events, until the function that is returned is called. */
export type Streams = Record<string, (response: ServerResponse) => () => void>

export function status() {
  return { peer: peer(0), name: 'node-0', version: '0.1.0', memory_used_bytes: 1, memory_limit_bytes: 2, memory: [], uptime_s: 1 }
}

export function job(id: number, more: object = {}) {
  return {
    id,
    kind: 'generation',
    subject: 'big',
    owner: { api: 'http', client: null },
    state: 'running',
    progress: { done: id % 50, total: 50 },
    prompt: { done: 9, total: 9 },
    stages: [{ peer: peer(id % 2), layers: [0, 40] }],
    failovers: 0,
    failover: null,
    submitted_unix_ms: Date.now(),
    started_unix_ms: Date.now(),
    ended_unix_ms: null,
    deadline_unix_ms: null,
    verdict: null,
    error: null,
    ...more,
  }
}

/** Nodes that hold two layers each of one model, as the pool reports them. */
export function pool(names: string[], tick: number) {
  const nodes = names.map((name, index) => ({
    peer: peer(index),
    name,
    local: index === 0,
    connected: true,
    master: index === names.length - 1,
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
    tasks_checked: 500,
    newcomer: false,
    quarantined: false,
    why: '',
    sent_bytes: tick * 1e6,
    received_bytes: tick * 2e6,
    models: [{ name: 'big', digest: 'd', served: index === 0, whole: true, layers: 40, weight_bytes: 8 << 30 }],
    serving: [],
    stages: [{ model: 'd', name: 'big', layers: [2 * index, 2 * index + 2], epoch: 1 + (tick % 2), state: 'ready', done_bytes: 0, total_bytes: 0, why: '', tokens_per_s: 20 }],
  }))
  const links = nodes.flatMap(({ peer: from }) =>
    nodes.filter(({ peer: to }) => to !== from).map(({ peer: to }) => ({ from, to, rtt_ms: 0.2, bytes_per_s: 1e9, sent_bytes_per_s: tick * 1e6, transport: 'quic', found_by: 'mdns' })),
  )
  const stages = nodes.flatMap(({ peer, stages }) => stages.map(({ layers }) => ({ peer, layers })))
  const placements = [{ model: 'd', name: 'big', epoch: 1 + (tick % 2), ready: true, stages }]
  return { local: peer(0), master: peer(names.length - 1), nodes, links, placements, refusals: [], absent: [] }
}

/** One event of a stream. */
export function event(name: string, data: unknown): string {
  return `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`
}

export class StandIn {
  private readonly server: Server

  constructor(answers: Answers, streams: Streams) {
    this.server = createServer((request, response) => {
      const path = request.url ?? '/'
      const stream = streams[path]
      if (stream) {
        response.writeHead(200, { 'content-type': 'text/event-stream' })
        response.write(': here\n\n')
        response.on('close', stream(response))
        return
      }
      if (path === '/metrics') return response.end('pangea_jobs_live 1\n')
      const answer = answers[path]
      if (answer) return response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(answer()))
      const file = path === '/' ? 'index.html' : path.replace('/console/', '')
      response.writeHead(200, { 'content-type': TYPES[extname(file)] ?? 'text/plain' }).end(readFileSync(join(DIST, file)))
    })
  }

  /** Its address, once it listens. */
  async start(): Promise<string> {
    await new Promise<void>((resolve) => this.server.listen(0, '127.0.0.1', resolve))
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}/`
  }

  stop(): void {
    this.server.closeAllConnections()
    this.server.close()
  }
}
