import { expect, test } from 'vitest'

import { shared } from '../src/same'

test('what has not changed is the very same object', () => {
  const before = { list: [{ a: 1 }, { a: 2, b: [3] }], none: null, text: 'x' }
  const copy = (): typeof before => structuredClone(before)
  expect(shared(before, copy())).toBe(before)
  const changed = copy()
  changed.list[0] = { a: 9 }
  const now = shared(before, changed)
  expect(now).toEqual(changed)
  expect(now).not.toBe(before)
  expect([now.list[1] === before.list[1], now.list[0] === before.list[0]]).toEqual([true, false])
})

test('other shapes are never taken for the same', () => {
  for (const [before, now] of [[[1], [1, 2]], [[1, 2], [1]], [{ a: 1 }, { b: 1 }], [{ a: undefined }, {}], [{}, []], [null, {}], [{ a: 1 }, 7], [undefined, { a: 1 }]]) {
    expect(shared(before, structuredClone(now))).toEqual(now)
  }
})
