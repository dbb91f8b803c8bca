// The pool as the node reports it, what changed between two reports, and where a graph of it is drawn. Pure.

import { count, layers, percent, shortPeer } from './units'

export type LayerRange = [number, number]

export interface Stage {
  model: string
  name: string
  layers: LayerRange
  epoch: number
  /** `fetching`, `loading`, `ready` or `failed`. */
  state: string
  done_bytes: number
  total_bytes: number
  why: string
  /** Of a single answer, as the stage's chain measured it; 0 until then. */
  tokens_per_s: number
}

export interface Serving {
  model: string
  name: string
  places: number
  running: number
  waiting: number
  tokens_per_s: number
}

export interface HeldModel {
  name: string
  digest: string
  served: boolean
  whole: boolean
  layers: number
  weight_bytes: number
}

export interface PoolNode {
  peer: string
  name: string
  local: boolean
  connected: boolean
  master: boolean
  works: boolean
  version: string
  numerics: number
  device: string
  threads: number
  gflops: number
  uptime_s: number
  memory_bytes: number
  /** Memory that its stages take, as placement reckons. */
  held_bytes: number
  decode_bytes_per_s: number
  prompt_macs_per_s: number
  trust: number
  /** Its results that passed their check, which is what earns trust. */
  tasks_checked: number
  /** Whether trust is low because little was checked so far, and for no other reason. */
  newcomer: boolean
  quarantined: boolean
  why: string
  sent_bytes: number
  received_bytes: number
  models: HeldModel[]
  serving: Serving[]
  stages: Stage[]
}

export interface Link {
  from: string
  to: string
  rtt_ms: number
  /** What it can carry. */
  bytes_per_s: number
  /** What passes over it now, in this direction. */
  sent_bytes_per_s: number
  transport: string
  found_by: string
}

export interface Placement {
  model: string
  name: string
  epoch: number
  ready: boolean
  stages: { peer: string; layers: LayerRange }[]
}

/** A peer that is no part of the pool now. */
export interface Absent {
  peer: string
  name: string
  state: string
  why: string
  addresses: string[]
}

export interface Pool {
  local: string
  master: string
  nodes: PoolNode[]
  links: Link[]
  placements: Placement[]
  refusals: { name: string; why: string }[]
  absent: Absent[]
}

export interface PoolState {
  pool: Pool | null
  /** When the report arrived, in milliseconds. */
  at: number
  /** Bytes per second to and from each peer, between the last two reports. */
  traffic: Record<string, { sent: number; received: number }>
}

export const noPool: PoolState = { pool: null, at: 0, traffic: {} }

export type PoolAction = { type: 'pool'; pool: Pool; at: number }

export function reducePool(state: PoolState, action: PoolAction): PoolState {
  const elapsed = (action.at - state.at) / 1000
  const traffic: PoolState['traffic'] = {}
  for (const node of action.pool.nodes) {
    const before = state.pool?.nodes.find((other) => other.peer === node.peer)
    if (!before || elapsed <= 0) continue
    // A new connection counts from zero.
    const rate = (now: number, then: number) => (now >= then ? (now - then) / elapsed : 0)
    traffic[node.peer] = {
      sent: rate(node.sent_bytes, before.sent_bytes),
      received: rate(node.received_bytes, before.received_bytes),
    }
  }
  return { pool: action.pool, at: action.at, traffic }
}

/** Bytes per second from which a link counts as busy: several times what pings and adverts take. */
export const BUSY = 50_000

/**
 * Bytes per second that pass over a link now: over one of this node, as it counted from the report before to the last one; over
 * another one, and before the second report, as the node that answers says.
 */
export function passing(link: Link, local: string, traffic: PoolState['traffic']): number {
  const counted = link.from === local ? traffic[link.to]?.sent : link.to === local ? traffic[link.from]?.received : undefined
  return counted ?? link.sent_bytes_per_s
}

/** The other direction of a link. */
export function reverse(link: Link, links: Link[]): Link | undefined {
  return links.find(({ from, to }) => from === link.to && to === link.from)
}

/** The names of the nodes; equal names are told apart by the ends of the peer ids. */
export function labels(nodes: { peer: string; name: string }[]): Map<string, string> {
  const times = new Map<string, number>()
  for (const node of nodes) times.set(node.name, (times.get(node.name) ?? 0) + 1)
  return new Map(
    nodes.map(({ peer, name }) => {
      const label = name || shortPeer(peer)
      return [peer, name && (times.get(name) ?? 0) > 1 ? `${name} ${shortPeer(peer)}` : label]
    }),
  )
}

/** Trust in a node in a word or number, and what it comes from. Little checked work is no distrust. */
export function trust(node: PoolNode): { text: string; from: string } {
  const number = percent(node.trust)
  if (node.local) return { text: number, from: 'this node trusts itself' }
  const checked = count(node.tasks_checked, 'checked result')
  if (node.newcomer) return { text: 'new', from: `${number} after ${checked}; each one that is right adds to it` }
  return { text: number, from: `after ${checked}` }
}

/** What peers are called, also those that are absent. For many of one report. */
export function labeller(pool: Pool | null): (peer: string) => string {
  const [nodes, absent] = [labels(pool?.nodes ?? []), labels(pool?.absent ?? [])]
  return (peer) => nodes.get(peer) ?? absent.get(peer) ?? shortPeer(peer)
}

export function labelOf(pool: Pool | null, peer: string): string {
  return labeller(pool)(peer)
}

/** Something that happened, for the list of events. */
export interface Happened {
  kind: 'node' | 'link' | 'master' | 'model' | 'trust'
  text: string
}

/** What changed from one report to the next. */
export function changes(before: Pool | null, now: Pool): Happened[] {
  if (!before) return []
  const happened: Happened[] = []
  const say = (kind: Happened['kind'], text: string) => happened.push({ kind, text })
  const was = new Map(before.nodes.map((node) => [node.peer, node]))
  const is = new Map(now.nodes.map((node) => [node.peer, node]))
  const names = labels([...now.nodes, ...before.nodes.filter((node) => !is.has(node.peer))])
  const name = (peer: string) => names.get(peer) ?? shortPeer(peer)
  for (const node of before.nodes) {
    if (!is.has(node.peer)) {
      const why = now.absent.find((peer) => peer.peer === node.peer)?.why
      say('node', `${name(node.peer)} is gone${why ? ` (${why})` : ''}`)
    }
  }
  for (const node of now.nodes) {
    const old = was.get(node.peer)
    if (!old) {
      say('node', `${name(node.peer)} joined: ${node.device || 'a lite client'}`)
      continue
    }
    if (node.connected !== old.connected && !node.local) {
      say('link', `${node.connected ? 'Connected to' : 'Lost the connection to'} ${name(node.peer)}`)
    }
    if (node.quarantined && !old.quarantined) {
      say('trust', `${name(node.peer)} is quarantined${node.why ? `: ${node.why}` : ''}`)
    }
    for (const stage of node.stages) {
      const earlier = old.stages.find((other) => other.model === stage.model && other.epoch === stage.epoch)
      if (earlier?.state === stage.state) continue
      const what = `${stage.name}, ${layers(stage.layers)} on ${name(node.peer)}`
      say('model', `${what}: ${stage.state}${stage.why ? ` (${stage.why})` : ''}`)
    }
    for (const stage of old.stages) {
      const stays = node.stages.some((other) => other.model === stage.model && other.epoch === stage.epoch)
      if (!stays) say('model', `${stage.name}, ${layers(stage.layers)} on ${name(node.peer)}: released`)
    }
  }
  if (now.master !== before.master) {
    say('master', now.master ? `${name(now.master)} is the master` : 'There is no master')
  }
  return happened
}

/** The nodes that answer requests for a model, in the order in which activations travel, with the layers of each. */
export function path(pool: Pool, model: string): { peer: string; layers: LayerRange }[] {
  const chains = pool.placements.filter((placement) => placement.name === model)
  const chain = chains.find((placement) => placement.ready) ?? chains[0]
  if (chain) return chain.stages
  return pool.nodes.flatMap((node) => {
    const held = node.models.find((held) => held.name === model)
    const serves = node.serving.some((serving) => serving.name === model)
    return serves ? [{ peer: node.peer, layers: [0, held?.layers ?? 1] as LayerRange }] : []
  })
}

/** The models that somebody serves or has placed, by name. */
export function poolModels(pool: Pool | null): string[] {
  const names = new Set<string>()
  for (const node of pool?.nodes ?? []) {
    for (const model of node.models) if (model.served) names.add(model.name)
    for (const serving of node.serving) names.add(serving.name)
  }
  for (const placement of pool?.placements ?? []) names.add(placement.name)
  return [...names].sort()
}

export interface Point {
  x: number
  y: number
}

/** An arrow that points from one place to another, as far as one letter can. */
export function arrow(from: Point, to: Point): string {
  const [x, y] = [to.x - from.x, to.y - from.y]
  if (Math.abs(x) >= Math.abs(y)) return x < 0 ? '←' : '→'
  return y < 0 ? '↑' : '↓'
}

/** Where the nodes are drawn in a box of this size: this node in the middle, the others around it. */
export function places(peers: string[], width: number, height: number): Map<string, Point> {
  const centre = { x: width / 2, y: height / 2 }
  const [first, ...others] = peers
  const found = new Map<string, Point>()
  if (first === undefined) return found
  // Two stand side by side.
  if (others.length === 1) {
    found.set(first, { x: width * 0.2, y: centre.y })
    found.set(others[0] as string, { x: width * 0.8, y: centre.y })
    return found
  }
  found.set(first, centre)
  // Three are a triangle: every link is seen.
  if (others.length === 2) {
    found.set(first, { x: centre.x, y: height * 0.2 })
    others.forEach((peer, index) => found.set(peer, { x: width * (index === 0 ? 0.15 : 0.85), y: height * 0.74 }))
    return found
  }
  const [wide, high] = [width / 2 - 84, height / 2 - 44]
  others.forEach((peer, index) => {
    const angle = (index / others.length) * 2 * Math.PI - Math.PI / 2
    // Beyond ten, every other one stands further in.
    const near = others.length > 10 && index % 2 === 1 ? 0.66 : 1
    found.set(peer, { x: centre.x + wide * near * Math.cos(angle), y: centre.y + high * near * Math.sin(angle) })
  })
  return found
}
