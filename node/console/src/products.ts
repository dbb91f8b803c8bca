// A product of two matrices: what is asked, which tiles have landed, and the answer's frames. Pure.

export interface ProductRequest {
  m: number
  k: number
  n: number
  dtype: string
  seed: number
  /** `auto` (wherever it is done soonest), `local` or `remote`. */
  place: string
}

export interface Tile {
  /** Row and column of the tile in the grid. */
  band: number
  panel: number
  /** Peer id of the node that computed it. */
  peer: string
}

export interface ProductReport {
  shape: [number, number, number]
  dtype: string
  seconds: number
  gflops: number
  tasks: { total: number; remote: number; local: number; retried: number; hedged: number }
  workers: { peer: string; name: string; tasks: number; seconds: number }[]
  bytes_sent: number
  bytes_received: number
  verification: { method: string; verdict: string }
  mode: string
  predicted_seconds: number
}

export type Frame =
  | { event: 'accepted'; job: number; shape: [number, number, number]; dtype: string }
  | { event: 'planned'; bands: number; panels: number }
  | { event: 'tiles'; tiles: [number, number, string][] }
  | { event: 'done'; report: ProductReport }
  | { event: 'product'; bytes: number; name: string }
  | { event: 'error'; message: string }

export interface ProductState {
  /** `idle`, `sending`, `running`, `receiving`, `done` or `failed`. */
  phase: string
  job: number | null
  shape: [number, number, number] | null
  dtype: string
  grid: { bands: number; panels: number } | null
  tiles: Tile[]
  report: ProductReport | null
  received_bytes: number
  total_bytes: number
  download: { url: string; name: string; bytes: number } | null
  error: string | null
}

export const noProduct: ProductState = {
  phase: 'idle',
  job: null,
  shape: null,
  dtype: '',
  grid: null,
  tiles: [],
  report: null,
  received_bytes: 0,
  total_bytes: 0,
  download: null,
  error: null,
}

export type ProductAction =
  | { type: 'product/start' }
  | { type: 'product/frame'; frame: Frame }
  | { type: 'product/received'; bytes: number }
  | { type: 'product/whole'; download: NonNullable<ProductState['download']> }
  | { type: 'product/failed'; error: string }

export function reduceProduct(state: ProductState, action: ProductAction): ProductState {
  switch (action.type) {
    case 'product/start':
      return { ...noProduct, phase: 'sending' }
    case 'product/received':
      return { ...state, received_bytes: action.bytes }
    case 'product/whole':
      return { ...state, phase: 'done', download: action.download }
    case 'product/failed':
      return { ...state, phase: 'failed', error: action.error }
    case 'product/frame':
      return framed(state, action.frame)
  }
}

function framed(state: ProductState, frame: Frame): ProductState {
  switch (frame.event) {
    case 'accepted':
      return { ...state, phase: 'running', job: frame.job, shape: frame.shape, dtype: frame.dtype }
    case 'planned':
      // A plan that is made again starts with no tile.
      return { ...state, grid: { bands: frame.bands, panels: frame.panels }, tiles: [] }
    case 'tiles': {
      // A tile of a convicted peer lands again elsewhere.
      const landed = new Map(state.tiles.map((tile) => [`${tile.band}/${tile.panel}`, tile]))
      for (const [band, panel, peer] of frame.tiles) landed.set(`${band}/${panel}`, { band, panel, peer })
      return { ...state, tiles: [...landed.values()] }
    }
    case 'done':
      return { ...state, report: frame.report }
    case 'product':
      return { ...state, phase: 'receiving', total_bytes: frame.bytes }
    case 'error':
      return { ...state, phase: 'failed', error: frame.message }
  }
}

/** Splits the bytes of an answer: frames, each a line of JSON, and after the frame `product` the bytes of the file. */
export class FrameReader {
  private line: Uint8Array[] = []
  private inProduct = false

  /** The frames that `bytes` completes, and what is of the product. */
  push(bytes: Uint8Array): { frames: Frame[]; product: Uint8Array | null } {
    const frames: Frame[] = []
    let rest = bytes
    while (!this.inProduct) {
      const end = rest.indexOf(10)
      if (end < 0) {
        if (rest.length > 0) this.line.push(rest)
        return { frames, product: null }
      }
      const text = new TextDecoder().decode(joined([...this.line, rest.subarray(0, end)]))
      this.line = []
      rest = rest.subarray(end + 1)
      // An empty line keeps the connection open.
      if (text === '') continue
      const frame: Frame = JSON.parse(text)
      frames.push(frame)
      this.inProduct = frame.event === 'product'
    }
    return { frames, product: rest.length > 0 ? rest : null }
  }
}

function joined(parts: Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0))
  let at = 0
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}

/** Why these sizes cannot be multiplied; null if they can. `memory`: bytes that this node may take. */
export function problem({ m, k, n, dtype }: ProductRequest, memory: number): string | null {
  for (const [name, size] of [['m', m], ['k', k], ['n', n]] as const) {
    if (!Number.isInteger(size) || size < 1) return `${name} must be a whole number from 1 on`
  }
  const width = WIDTHS[dtype] ?? 4
  // The product of 8-bit integers has 32 bits, that of half floats is one of floats.
  const needed = (m * k + k * n) * width + m * n * Math.max(width, 4)
  if (memory > 0 && needed > memory) return `operands and product take ${needed.toLocaleString('en')} bytes, more than this node offers`
  return null
}

/** The types that a matrix may have, each with its bytes. */
export const WIDTHS: Record<string, number> = { f32: 4, f64: 8, f16: 2, i8: 1 }
