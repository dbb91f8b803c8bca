import { expect, test } from 'vitest'

import { type Frame, FrameReader, noProduct, problem, reduceProduct } from '../src/products'

const FRAMES: Frame[] = [
  { event: 'accepted', job: 3, shape: [2, 3, 4], dtype: 'f32' },
  { event: 'planned', bands: 2, panels: 1 },
  { event: 'tiles', tiles: [[0, 0, 'p'], [1, 0, 'q']] },
  { event: 'product', bytes: 4, name: 'product.npy' },
]

test('frames and the product are told apart wherever the answer is cut', () => {
  const product = Uint8Array.from([10, 123, 10, 255])
  const lines = new TextEncoder().encode(`${JSON.stringify(FRAMES[0])}\n\n${FRAMES.slice(1).map((frame) => `${JSON.stringify(frame)}\n`).join('')}`)
  const bytes = Uint8Array.from([...lines, ...product])
  for (let at = 0; at <= bytes.length; at += 1) {
    const reader = new FrameReader()
    const parts = [reader.push(bytes.subarray(0, at)), reader.push(bytes.subarray(at))]
    expect(parts.flatMap(({ frames }) => frames)).toEqual(FRAMES)
    expect(parts.flatMap(({ product }) => [...(product ?? [])])).toEqual([...product])
  }
})

test('a tile that is computed again lands once, and a new plan starts without tiles', () => {
  const play = (frames: Frame[]) => frames.reduce((state, frame) => reduceProduct(state, { type: 'product/frame', frame }), noProduct)
  const twice = play([...FRAMES.slice(0, 3), { event: 'tiles', tiles: [[0, 0, 'q']] }])
  expect(twice.tiles).toEqual([
    { band: 0, panel: 0, peer: 'q' },
    { band: 1, panel: 0, peer: 'q' },
  ])
  expect(reduceProduct(twice, { type: 'product/frame', frame: FRAMES[1] as Frame }).tiles).toEqual([])
  expect(play([{ event: 'error', message: 'no room' }])).toMatchObject({ phase: 'failed', error: 'no room' })
})

test('sizes that cannot be are refused before they are sent', () => {
  const sizes = { m: 10, k: 10, n: 10, dtype: 'f32', seed: 0, place: 'auto' }
  expect(problem(sizes, 1200)).toBeNull()
  expect(problem(sizes, 1199)).toMatch('1,200 bytes')
  expect(problem({ ...sizes, dtype: 'i8' }, 600)).toBeNull()
  expect(problem({ ...sizes, k: 0 }, 0)).toMatch('k must be')
  expect(problem({ ...sizes, n: 1.5 }, 0)).toMatch('n must be')
})
