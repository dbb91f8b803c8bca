// Receipts of answers, and their check in the browser: every stage's signature, the receiver's, and that the claims form one chain.
// The weights are the node's to check. The bytes that are signed are those of compute/src/commit/claim.rs.

import { blake3 } from '@noble/hashes/blake3.js'

export interface Signature {
  peer: string
  signature: string
}

export interface Claim {
  session: string
  epoch: number
  model: string
  numerics: number
  layers: [number, number]
  positions: number
  chosen_from: number
  predecessor: string
  sampling: string
  output: string
  signed: Signature
  received: Signature | null
}

export interface Segment {
  session: string
  epoch: number
  chosen_from: number
  stages: { peer: string; layers: [number, number] }[]
  claims: Claim[]
  ended: string | null
  received: { positions: number; root: string } | null
}

export interface Receipt {
  version: number
  id: string
  request: string
  unix_ms: number
  coordinator: string
  model: { name: string; digest: string; file: string }
  numerics: number
  prompt_tokens: number[]
  answer_tokens: number[]
  segments: Segment[]
  verdict: string
  audits: { segment: number; stage: number; by: string; holds: boolean; position: number | null; unix_ms: number }[]
}

export interface StageCheck {
  peer: string
  layers: [number, number]
  /** Whether the stage signed its claim with the key that its peer id contains. */
  signed: boolean
  /** Whether the claim is about this session, model, numerics and layers. */
  asked: boolean
  /** Whether its input is the output of the stage before. */
  linked: boolean
  /** Whether the next stage, or the coordinator, signed that it received this output. */
  received: boolean
}

export interface ReceiptCheck {
  holds: boolean
  segments: { ended: string | null; stages: StageCheck[] }[]
}

/** Verifies an Ed25519 signature. */
export type Verify = (key: Uint8Array, signature: Uint8Array, message: Uint8Array) => Promise<boolean>

const TAG = new TextEncoder().encode('pangea exact/1 claim\0')
const RECEIVED = new TextEncoder().encode('pangea exact/1 received\0')

export function fromHex(text: string): Uint8Array {
  if (text.length % 2 !== 0 || !/^[0-9a-f]*$/.test(text)) throw new Error('not hex digits')
  return Uint8Array.from({ length: text.length / 2 }, (_, at) => Number.parseInt(text.slice(2 * at, 2 * at + 2), 16))
}

const BASE58 = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'

function fromBase58(text: string): Uint8Array {
  let number = 0n
  for (const digit of text) {
    const value = BASE58.indexOf(digit)
    if (value < 0) throw new Error('not base58')
    number = number * 58n + BigInt(value)
  }
  const bytes: number[] = []
  for (; number > 0n; number >>= 8n) bytes.unshift(Number(number & 0xffn))
  const zeros = /^1*/.exec(text)?.[0].length ?? 0
  return Uint8Array.from([...Array<number>(zeros).fill(0), ...bytes])
}

/** Before the key in a peer id: an identity multihash of 36 bytes, a protobuf with the type Ed25519 and 32 bytes. */
const PEER_HEAD = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20]

/** The Ed25519 key that a peer id contains. */
export function keyOf(peer: string): Uint8Array {
  const bytes = fromBase58(peer)
  if (bytes.length !== PEER_HEAD.length + 32 || PEER_HEAD.some((byte, at) => bytes[at] !== byte)) {
    throw new Error(`${peer} is no peer id with an Ed25519 key`)
  }
  return bytes.slice(PEER_HEAD.length)
}

/** The bytes that a stage signs. */
export function claimBytes(claim: Claim): Uint8Array {
  const bytes = new Uint8Array(TAG.length + 16 + 8 + 32 + 12 + 16 + 96)
  const view = new DataView(bytes.buffer)
  let at = 0
  const put = (part: Uint8Array) => {
    bytes.set(part, at)
    at += part.length
  }
  const hex = (text: string, length: number) => {
    const part = fromHex(text)
    if (part.length !== length) throw new Error(`${length} bytes are expected`)
    put(part)
  }
  const u32 = (value: number) => {
    view.setUint32(at, value, true)
    at += 4
  }
  const u64 = (value: number) => {
    view.setBigUint64(at, BigInt(value), true)
    at += 8
  }
  put(TAG)
  hex(claim.session, 16)
  u64(claim.epoch)
  hex(claim.model, 32)
  u32(claim.numerics)
  u32(claim.layers[0])
  u32(claim.layers[1])
  u64(claim.positions)
  u64(claim.chosen_from)
  hex(claim.predecessor, 32)
  hex(claim.sampling, 32)
  hex(claim.output, 32)
  return bytes
}

function receivedBytes(claim: Claim): Uint8Array {
  const digest = blake3(claimBytes(claim))
  const bytes = new Uint8Array(RECEIVED.length + digest.length)
  bytes.set(RECEIVED)
  bytes.set(digest, RECEIVED.length)
  return bytes
}

async function isBy(peer: string | undefined, signature: Signature | null, message: () => Uint8Array, verify: Verify) {
  if (!peer || signature?.peer !== peer) return false
  try {
    return await verify(keyOf(peer), fromHex(signature.signature), message())
  } catch {
    // What cannot be read is not signed.
    return false
  }
}

/** Checks every segment that ended normally; nobody vouches for one that was lost. */
export async function check(receipt: Receipt, verify: Verify): Promise<ReceiptCheck> {
  const segments = await Promise.all(receipt.segments.map((segment) => checkSegment(receipt, segment, verify)))
  const vouched = segments.filter((segment) => segment.ended === null)
  const holds =
    segments.at(-1)?.ended === null &&
    vouched.every(({ stages }) => stages.every((one) => one.signed && one.asked && one.linked && one.received))
  return { holds, segments }
}

async function checkSegment(receipt: Receipt, segment: Segment, verify: Verify) {
  const stages = segment.stages.map(async (stage, index): Promise<StageCheck> => {
    const claim = segment.claims[index]
    const { peer, layers } = stage
    if (!claim) return { peer, layers, signed: false, asked: false, linked: false, received: false }
    const before = segment.claims[index - 1]
    const isLast = index === segment.stages.length - 1
    const next = isLast ? receipt.coordinator : segment.stages[index + 1]?.peer
    // Numbers of JSON that JavaScript rounds are refused.
    const whole = [claim.epoch, claim.positions, claim.chosen_from].every(Number.isSafeInteger)
    const first = segment.claims[0]
    return {
      peer,
      layers,
      signed: whole && (await isBy(peer, claim.signed, () => claimBytes(claim), verify)),
      asked:
        claim.session === segment.session &&
        claim.epoch === segment.epoch &&
        claim.model === receipt.model.digest &&
        claim.numerics === receipt.numerics &&
        claim.layers[0] === layers[0] &&
        claim.layers[1] === layers[1] &&
        claim.chosen_from === segment.chosen_from &&
        claim.positions === first?.positions &&
        claim.sampling === first?.sampling,
      linked: index === 0 ? layers[0] === 0 : before?.output === claim.predecessor && before.layers[1] === layers[0],
      received:
        whole &&
        (await isBy(next, claim.received, () => receivedBytes(claim), verify)) &&
        (!isLast || !segment.received || segment.received.root === claim.output),
    }
  })
  return { ended: segment.ended, stages: await Promise.all(stages) }
}
