import { blake3 } from '@noble/hashes/blake3.js'
import { expect, test } from 'vitest'

import { verify } from '../src/ed25519'
import { verify as byLibrary } from '../src/ed25519-library'
import { check, type Claim, claimBytes, fromHex, keyOf, type Receipt } from '../src/receipt'

const hex = (bytes: Uint8Array) => [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('')
const filled = (byte: number, length: number) => hex(new Uint8Array(length).fill(byte))

const BASE58 = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'

function peerOf(key: Uint8Array): string {
  const bytes = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20, ...key]
  let number = bytes.reduce((number, byte) => number * 256n + BigInt(byte), 0n)
  let text = ''
  for (; number > 0n; number /= 58n) text = BASE58[Number(number % 58n)] + text
  return `1${text}`
}

interface Signer {
  peer: string
  sign(message: Uint8Array): Promise<string>
}

async function signer(): Promise<Signer> {
  const pair = (await crypto.subtle.generateKey({ name: 'Ed25519' }, true, ['sign', 'verify'])) as CryptoKeyPair
  const key = new Uint8Array(await crypto.subtle.exportKey('raw', pair.publicKey))
  const sign = async (message: Uint8Array) =>
    hex(new Uint8Array(await crypto.subtle.sign({ name: 'Ed25519' }, pair.privateKey, message as Uint8Array<ArrayBuffer>)))
  return { peer: peerOf(key), sign }
}

const claim = (more: Partial<Claim> = {}): Claim => ({
  session: filled(1, 16),
  epoch: 2,
  model: filled(3, 32),
  numerics: 4,
  layers: [5, 6],
  positions: 8,
  chosen_from: 7,
  predecessor: filled(9, 32),
  sampling: filled(10, 32),
  output: filled(11, 32),
  signed: { peer: '', signature: '' },
  received: null,
  ...more,
})

async function signed(claim: Claim, by: Signer, next: Signer): Promise<Claim> {
  const received = new Uint8Array([...new TextEncoder().encode('pangea exact/1 received\0'), ...blake3(claimBytes(claim))])
  return {
    ...claim,
    signed: { peer: by.peer, signature: await by.sign(claimBytes(claim)) },
    received: { peer: next.peer, signature: await next.sign(received) },
  }
}

async function receipt(): Promise<Receipt> {
  const [one, two, coordinator] = await Promise.all([signer(), signer(), signer()])
  const first = await signed(claim({ layers: [0, 3], output: filled(20, 32) }), one, two)
  const second = await signed(claim({ layers: [3, 6], predecessor: filled(20, 32), output: filled(30, 32) }), two, coordinator)
  const segment = {
    session: filled(1, 16),
    epoch: 2,
    chosen_from: 7,
    stages: [
      { peer: one.peer, layers: [0, 3] as [number, number] },
      { peer: two.peer, layers: [3, 6] as [number, number] },
    ],
    claims: [first, second],
    ended: null,
    received: { positions: 8, root: filled(30, 32) },
  }
  return {
    version: 1,
    id: '0123456789ab',
    request: '',
    unix_ms: 1,
    coordinator: coordinator.peer,
    model: { name: 'tiny', digest: filled(3, 32), file: 'tiny.gguf' },
    numerics: 4,
    prompt_tokens: [1],
    answer_tokens: [2],
    segments: [segment],
    verdict: 'unchecked',
    audits: [],
  }
}

test('the signed bytes are those of the node', () => {
  // As in the test by hand of compute/src/commit/claim.rs.
  const bytes = [
    ...new TextEncoder().encode('pangea exact/1 claim\0'),
    ...Array(16).fill(1),
    ...[2, 0, 0, 0, 0, 0, 0, 0],
    ...Array(32).fill(3),
    ...[4, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0],
    ...[8, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0],
    ...Array(32).fill(9),
    ...Array(32).fill(10),
    ...Array(32).fill(11),
  ]
  expect([...claimBytes(claim())]).toEqual(bytes)
})

test('a peer id contains its key, and other texts have none', async () => {
  const { peer } = await signer()
  expect(peer).toMatch(/^12D3KooW/)
  expect(keyOf(peer)).toHaveLength(32)
  for (const other of ['', '12D3', 'QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N', '0OIl', `1${peer}`]) expect(() => keyOf(other)).toThrow()
  expect(() => fromHex('0g')).toThrow()
})

for (const [name, by] of [['WebCrypto', verify], ['the library', byLibrary]] as const) {
  test(`a chain holds, and any change of it is found: ${name}`, async () => {
    const whole = await receipt()
    expect(await check(whole, by)).toMatchObject({ holds: true })
    const changed = (change: (copy: Receipt) => void) => {
      const copy = structuredClone(whole)
      change(copy)
      return check(copy, by)
    }
    const claimOf = (copy: Receipt, index: number) => copy.segments[0]?.claims[index] as Claim
    const lies: [string, (copy: Receipt) => void, object][] = [
      ['another output', (copy) => (claimOf(copy, 1).output = filled(31, 32)), { signed: false, received: false }],
      ['another model', (copy) => (copy.model.digest = filled(4, 32)), { asked: false }],
      ['a broken link', (copy) => (claimOf(copy, 1).predecessor = filled(21, 32)), { linked: false }],
      ['another receiver', (copy) => (copy.coordinator = whole.segments[0]?.stages[0]?.peer ?? ''), { received: false }],
      ['other tokens', (copy) => ((copy.segments[0] as { received: unknown }).received = { positions: 8, root: filled(1, 32) }), { received: false }],
      ['a missing claim', (copy) => copy.segments[0]?.claims.pop(), { signed: false }],
      ['no signature', (copy) => (claimOf(copy, 1).signed.signature = ''), { signed: false }],
    ]
    for (const [what, change, expected] of lies) {
      const found = await changed(change)
      expect(found.holds, what).toBe(false)
      expect(found.segments[0]?.stages[1], what).toMatchObject(expected)
    }
  })
}

test('nobody vouches for a segment that was lost, but the last one must hold', async () => {
  const whole = await receipt()
  const [segment] = whole.segments
  if (!segment) throw new Error('a receipt has a segment')
  const lost = { ...segment, claims: [], ended: 'a stage was lost' }
  expect((await check({ ...whole, segments: [lost, segment] }, verify)).holds).toBe(true)
  expect((await check({ ...whole, segments: [segment, lost] }, verify)).holds).toBe(false)
  expect((await check({ ...whole, segments: [] }, verify)).holds).toBe(false)
})
