import { expect, test } from 'vitest'

import { arrow, changes, labels, type Link, noPool, passing, path, places, type Pool, type PoolNode, reducePool, reverse, trust } from '../src/pool'

export function node(peer: string, more: Partial<PoolNode> = {}): PoolNode {
  return {
    peer,
    name: peer,
    local: false,
    connected: true,
    master: false,
    works: true,
    version: '1',
    numerics: 1,
    device: 'cpu',
    threads: 2,
    gflops: 100,
    uptime_s: 5,
    memory_bytes: 1000,
    held_bytes: 0,
    decode_bytes_per_s: 0,
    prompt_macs_per_s: 0,
    trust: 1,
    tasks_checked: 500,
    newcomer: false,
    quarantined: false,
    why: '',
    sent_bytes: 0,
    received_bytes: 0,
    models: [],
    serving: [],
    stages: [],
    ...more,
  }
}

export function pool(nodes: PoolNode[], more: Partial<Pool> = {}): Pool {
  return { local: nodes[0]?.peer ?? '', master: '', nodes, links: [], placements: [], refusals: [], absent: [], ...more }
}

const stage = (state: string, epoch = 1) => ({
  model: 'd',
  name: 'tiny',
  layers: [0, 4] as [number, number],
  epoch,
  state,
  done_bytes: 0,
  total_bytes: 0,
  why: '',
  tokens_per_s: 0,
})

test('what changes from one report to the next is told in sentences', () => {
  const before = pool([node('a', { local: true }), node('b', { stages: [stage('loading')] }), node('c')], { master: 'a' })
  const gone = { peer: 'c', name: 'c', state: 'gone', why: 'it left', addresses: [] }
  const now = pool(
    [
      node('a', { local: true }),
      node('b', { connected: false, quarantined: true, why: 'a lie', stages: [stage('ready'), stage('loading', 2)] }),
      node('d'),
    ],
    { master: 'b', absent: [gone] },
  )
  expect(changes(before, now)).toEqual([
    { kind: 'node', text: 'c is gone (it left)' },
    { kind: 'link', text: 'Lost the connection to b' },
    { kind: 'trust', text: 'b is quarantined: a lie' },
    { kind: 'model', text: 'tiny, layers 0–3 on b: ready' },
    { kind: 'model', text: 'tiny, layers 0–3 on b: loading' },
    { kind: 'node', text: 'd joined: cpu' },
    { kind: 'master', text: 'b is the master' },
  ])
  expect(changes(now, now)).toEqual([])
  expect(changes(null, now)).toEqual([])
  expect(changes(now, pool([node('a', { local: true }), node('b', { connected: false, quarantined: true })]))).toContainEqual({
    kind: 'model',
    text: 'tiny, layers 0–3 on b: released',
  })
})

test('traffic is what was added since the report before, and a new connection counts from zero', () => {
  const first = reducePool(noPool, { type: 'pool', at: 1000, pool: pool([node('b', { sent_bytes: 100, received_bytes: 50 })]) })
  expect(first.traffic).toEqual({})
  const second = reducePool(first, { type: 'pool', at: 3000, pool: pool([node('b', { sent_bytes: 300, received_bytes: 10 })]) })
  expect(second.traffic).toEqual({ b: { sent: 100, received: 0 } })
})

test('what passes over a link is what this node counted, or what the sending node says of a link of others', () => {
  const link = (from: string, to: string, sent_bytes_per_s: number): Link => ({
    from,
    to,
    rtt_ms: 1,
    bytes_per_s: 1e9,
    sent_bytes_per_s,
    transport: 'tcp',
    found_by: 'mdns',
  })
  const links = [link('a', 'b', 1), link('b', 'a', 2), link('b', 'c', 3), link('c', 'b', 0)]
  const report = (sent_bytes: number, received_bytes: number) =>
    pool([node('a', { local: true }), node('b', { sent_bytes, received_bytes }), node('c')], { links })
  const now = (state: ReturnType<typeof reducePool>) => links.map((link) => passing(link, 'a', state.traffic))
  const first = reducePool(noPool, { type: 'pool', at: 1000, pool: report(100, 50) })
  expect(now(first)).toEqual([1, 2, 3, 0])
  const second = reducePool(first, { type: 'pool', at: 3000, pool: report(300, 50) })
  expect(now(second)).toEqual([100, 0, 3, 0])
  expect(links.map((link) => reverse(link, links))).toEqual([links[1], links[0], links[3], links[2]])
  expect(reverse(link('a', 'c', 0), links)).toBeUndefined()
})

test('an arrow points from one place to another', () => {
  const [left, right, above] = [{ x: 0, y: 50 }, { x: 100, y: 60 }, { x: 5, y: 0 }]
  expect([arrow(left, right), arrow(right, left), arrow(left, above), arrow(above, left)]).toEqual(['→', '←', '↑', '↓'])
})

test('a node of which little was checked is new, and one that something speaks against has its number', () => {
  const said = (more: Partial<PoolNode>) => trust(node('b', more))
  expect(said({ trust: 0.1, tasks_checked: 0, newcomer: true })).toEqual({
    text: 'new',
    from: '10 % after 0 checked results; each one that is right adds to it',
  })
  expect(said({ trust: 0.05, tasks_checked: 1 })).toEqual({ text: '5 %', from: 'after 1 checked result' })
  expect(said({ trust: 0, quarantined: true }).text).toBe('0 %')
  expect(said({ trust: 1, tasks_checked: 0, local: true })).toEqual({ text: '100 %', from: 'this node trusts itself' })
})

test('equal names are told apart', () => {
  const found = labels([
    { peer: '12D3KooWaaaaaa', name: 'vm' },
    { peer: '12D3KooWbbbbbb', name: 'vm' },
    { peer: '12D3KooWcccccc', name: 'mac' },
    { peer: '12D3KooWdddddd', name: '' },
  ])
  expect([...found.values()]).toEqual(['vm …aaaaaa', 'vm …bbbbbb', 'mac', '…dddddd'])
})

test('the path of a model is its ready placement, or the nodes that serve it alone', () => {
  const stages = (peer: string) => [{ peer, layers: [0, 4] as [number, number] }]
  const serving = { model: 'd', name: 'tiny', places: 1, running: 0, waiting: 0, tokens_per_s: 0 }
  const alone = pool([node('a', { serving: [serving] }), node('b')])
  expect(path(alone, 'tiny')).toEqual([{ peer: 'a', layers: [0, 1] }])
  const placement = { model: 'd', name: 'tiny', epoch: 1, ready: false, stages: stages('b') }
  const placed = pool(alone.nodes, { placements: [placement, { ...placement, epoch: 2, ready: true, stages: stages('a') }] })
  expect(path(placed, 'tiny')).toEqual(stages('a'))
  expect(path(placed, 'other')).toEqual([])
})

test('every node has a place of its own inside the picture', () => {
  for (const count of [0, 1, 2, 3, 8, 20, 40]) {
    const peers = Array.from({ length: count }, (_, index) => `p${index}`)
    const found = [...places(peers, 760, 400).values()]
    expect(found).toHaveLength(count)
    expect(new Set(found.map(({ x, y }) => `${Math.round(x)} ${Math.round(y)}`)).size).toBe(count)
    for (const { x, y } of found) expect(x >= 26 && x <= 734 && y >= 26 && y <= 374).toBe(true)
  }
})

test('the link between two nodes does not run through a third one', () => {
  const [first, second, third] = [...places(['a', 'b', 'c'], 760, 400).values()]
  if (!first || !second || !third) throw new Error('a node has no place')
  const area = (second.x - first.x) * (third.y - first.y) - (third.x - first.x) * (second.y - first.y)
  expect(Math.abs(area)).toBeGreaterThan(10_000)
})
