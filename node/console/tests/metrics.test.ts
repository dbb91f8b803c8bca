import { expect, test } from 'vitest'

import { charts, gauge, parse, quantile, rate, reading, READINGS, reduceMetrics, noMetrics } from '../src/metrics'

test('samples are read with labels, escapes and infinities; comments are not', () => {
  const text = `# HELP a_total Things
# TYPE a_total counter
a_total{model="x \\"y\\" \\\\ z",le="+Inf"} 3
b 1.5e3
c{} +Inf
nonsense
`
  expect(parse(text)).toEqual([
    { name: 'a_total', labels: { model: 'x "y" \\ z', le: '+Inf' }, value: 3 },
    { name: 'b', labels: {}, value: 1500 },
    { name: 'c', labels: {}, value: Infinity },
  ])
})

const at = (second: number, text: string) => reading(text, second * 1000)

test('a counter becomes a rate and starts again from zero', () => {
  const readings = [at(0, 'a_total{m="1"} 10\na_total{m="2"} 5'), at(2, 'a_total{m="1"} 20\na_total{m="2"} 5'), at(4, 'a_total{m="1"} 4')]
  expect(rate(readings, 'a_total')).toEqual([null, 5, 2])
  expect(rate(readings, 'a_total', { m: '2' })).toEqual([null, 0, null])
  expect(gauge(readings, 'a_total')).toEqual([15, 25, 4])
  expect(rate(readings, 'none')).toEqual([null, null, null])
})

test('a percentile is interpolated within its bucket over the last half minute', () => {
  const buckets = (counts: number[]) => `h_bucket{le="0.1"} ${counts[0]}\nh_bucket{le="0.2"} ${counts[1]}\nh_bucket{le="+Inf"} ${counts[2]}`
  const readings = [at(0, buckets([5, 5, 5])), at(2, buckets([5, 15, 15])), at(4, buckets([5, 15, 15]))]
  expect(quantile(readings, 'h', 0.5)).toEqual([null, expect.closeTo(0.15), expect.closeTo(0.15)])
  expect(quantile([at(0, buckets([0, 0, 0])), at(2, buckets([0, 0, 4]))], 'h', 0.5)).toEqual([null, 0.2])
})

test('readings are bounded, and a chart leaves out what says nothing', () => {
  let state = noMetrics
  for (let second = 0; second < READINGS + 9; second += 1) {
    state = reduceMetrics(state, { type: 'metrics', reading: at(second, 'pangea_memory_bytes{purpose="weights"} 7\npangea_memory_bytes{purpose="audits"} 0') })
  }
  expect(state.readings).toHaveLength(READINGS)
  const found = charts(state.readings)
  expect(found.find(({ title }) => title === 'Memory by lease')?.lines.map(({ label }) => label)).toEqual(['weights'])
  expect(found.find(({ title }) => title === 'Tokens per second')?.lines).toEqual([])
})
