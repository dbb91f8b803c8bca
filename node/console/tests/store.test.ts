import { expect, test } from 'vitest'

import { Store } from '../src/store'

test('actions of one frame are reduced together and told once', () => {
  const frames: (() => void)[] = []
  const store = new Store((state: number, action: number) => state + action, 0, (run) => frames.push(run))
  const seen: number[] = []
  store.subscribe(() => seen.push(store.state))
  for (let event = 0; event < 100; event += 1) store.dispatch(1)
  expect([store.state, frames.length]).toEqual([0, 1])
  frames.shift()?.()
  expect([store.state, seen]).toEqual([100, [100]])
  store.dispatch(0)
  frames.shift()?.()
  expect(seen).toEqual([100])
})
