import { expect, test } from 'vitest'

import { type Prediction, PREDICTIONS, reducePredictions, slowness } from '../src/predictions'

const one = (more: Partial<Prediction> = {}): Prediction => ({ unix_ms: 1, what: '2x2x2', kind: 'product', predicted: 2, measured: 4, ...more })
const add = (state: Prediction[], prediction: Prediction) => reducePredictions(state, { type: 'prediction', prediction })

test('the latest predictions are kept, and nothing is said of what was not predicted', () => {
  const many = Array.from({ length: PREDICTIONS + 3 }, (_, unix_ms) => one({ unix_ms })).reduce(add, [] as Prediction[])
  expect([many.length, many[0]?.unix_ms]).toEqual([PREDICTIONS, PREDICTIONS + 2])
  expect([one({ predicted: 0 }), one({ measured: 0 }), one({ predicted: Number.NaN })].reduce(add, [] as Prediction[])).toEqual([])
})

test('a time that was longer and a rate that was lower than predicted are slow', () => {
  expect(slowness(one())).toBe(2)
  expect(slowness(one({ kind: 'answer', predicted: 100, measured: 50 }))).toBe(2)
})
