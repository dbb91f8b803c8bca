// Metrics from Prometheus' text format, kept for a while, and the series that charts draw. Pure.

export interface Sample {
  name: string
  labels: Record<string, string>
  value: number
}

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g
const ESCAPES: Record<string, string> = { n: '\n', '\\': '\\', '"': '"' }

/** The samples of a text. Lines that are no samples are skipped. */
export function parse(text: string): Sample[] {
  const samples: Sample[] = []
  for (const line of text.split('\n')) {
    if (line.startsWith('#')) continue
    const found = LINE.exec(line)
    if (!found?.[1] || !found[3]) continue
    const labels: Record<string, string> = {}
    for (const [, name, value] of (found[2] ?? '').matchAll(LABEL)) {
      labels[name as string] = (value as string).replace(/\\(.)/g, (whole, escaped: string) => ESCAPES[escaped] ?? whole)
    }
    const value = found[3] === '+Inf' ? Infinity : found[3] === '-Inf' ? -Infinity : Number(found[3])
    samples.push({ name: found[1], labels, value })
  }
  return samples
}

/** A reading of all metrics, with the sum over all labels but one. */
export interface Reading {
  /** Seconds since 1970. */
  at: number
  samples: Map<string, Sample[]>
}

export function reading(text: string, unixMs: number): Reading {
  const samples = new Map<string, Sample[]>()
  for (const sample of parse(text)) {
    const others = samples.get(sample.name)
    if (others) others.push(sample)
    else samples.set(sample.name, [sample])
  }
  return { at: unixMs / 1000, samples }
}

/** Readings that are kept: ten minutes at one in two seconds. */
export const READINGS = 300

export interface MetricsState {
  readings: Reading[]
}

export const noMetrics: MetricsState = { readings: [] }

export type MetricsAction = { type: 'metrics'; reading: Reading }

export function reduceMetrics(state: MetricsState, { reading }: MetricsAction): MetricsState {
  return { readings: [...state.readings, reading].slice(-READINGS) }
}

/** The sum of a metric's samples whose labels include `labels`; null if there is none. */
export function sum(reading: Reading, name: string, labels: Record<string, string> = {}): number | null {
  const samples = reading.samples.get(name)?.filter((sample) => {
    return Object.entries(labels).every(([label, value]) => sample.labels[label] === value)
  })
  return samples && samples.length > 0 ? samples.reduce((all, { value }) => all + value, 0) : null
}

/** The values of a label that a metric has had. */
export function values(readings: Reading[], name: string, label: string): string[] {
  const found = new Set<string>()
  for (const reading of readings) {
    for (const sample of reading.samples.get(name) ?? []) {
      const value = sample.labels[label]
      if (value !== undefined) found.add(value)
    }
  }
  return [...found].sort()
}

type Line = (number | null)[]

/** A value per reading. */
export function gauge(readings: Reading[], name: string, labels?: Record<string, string>): Line {
  return readings.map((reading) => sum(reading, name, labels))
}

/** What a counter grew by per second, from each reading to the next. A counter that starts again counts from zero. */
export function rate(readings: Reading[], name: string, labels?: Record<string, string>): Line {
  return readings.map((reading, at) => {
    const before = readings[at - 1]
    if (!before) return null
    const [now, then] = [sum(reading, name, labels), sum(before, name, labels) ?? 0]
    const elapsed = reading.at - before.at
    if (now === null || elapsed <= 0) return null
    return (now >= then ? now - then : now) / elapsed
  })
}

/** Readings over which a percentile is taken: half a minute. */
const WINDOW = 15

/** A histogram's percentile of what was observed within the last half minute, interpolated within its bucket as Prometheus does. */
export function quantile(readings: Reading[], name: string, share: number, labels?: Record<string, string>): Line {
  return readings.map((reading, at) => {
    const before = readings[Math.max(0, at - WINDOW)]
    if (!before || before === reading) return null
    const bounds = values([reading], `${name}_bucket`, 'le').map((le) => [le, le === '+Inf' ? Infinity : Number(le)] as const)
    const buckets = bounds
      .sort(([, a], [, b]) => a - b)
      .map(([le, bound]) => {
        const now = sum(reading, `${name}_bucket`, { ...labels, le }) ?? 0
        const then = sum(before, `${name}_bucket`, { ...labels, le }) ?? 0
        return { bound, count: now >= then ? now - then : now }
      })
    const total = buckets.at(-1)?.count ?? 0
    if (total === 0) return null
    const rank = share * total
    const index = buckets.findIndex(({ count }) => count >= rank)
    const bucket = buckets[index]
    const low = buckets[index - 1]
    if (!bucket) return null
    if (bucket.bound === Infinity) return low?.bound ?? null
    const [from, below] = [low?.bound ?? 0, low?.count ?? 0]
    return from + (bucket.bound - from) * ((rank - below) / Math.max(1, bucket.count - below))
  })
}

export interface Chart {
  title: string
  unit: 'number' | 'bytes' | 'rate' | 'seconds'
  lines: { label: string; data: Line }[]
  /** Where there is nothing yet: what would be there. */
  empty: string
}

/** The charts of the console. Lines without any value are left out. */
export function charts(readings: Reading[]): Chart[] {
  const latency = (title: string, name: string, empty: string): Chart => ({
    title,
    unit: 'seconds',
    lines: [
      { label: 'p50', data: quantile(readings, name, 0.5) },
      { label: 'p90', data: quantile(readings, name, 0.9) },
      { label: 'p99', data: quantile(readings, name, 0.99) },
    ],
    empty,
  })
  const each = (name: string, label: string, line: typeof gauge) =>
    values(readings, name, label).map((value) => ({ label: value, data: line(readings, name, { [label]: value }) }))
  const all: Chart[] = [
    {
      title: 'Tokens per second',
      unit: 'number',
      lines: [
        { label: 'answers', data: rate(readings, 'pangea_answer_tokens_total') },
        { label: 'prompts', data: rate(readings, 'pangea_prompt_tokens_total') },
      ],
      empty: 'No model has answered yet.',
    },
    latency('Time to the first token', 'pangea_request_first_token_seconds', 'No answer in the last half minute.'),
    latency('Time of whole answers', 'pangea_request_total_seconds', 'No answer in the last half minute.'),
    {
      title: 'Queue',
      unit: 'number',
      lines: [
        { label: 'running', data: gauge(readings, 'pangea_sequences_running') },
        { label: 'waiting', data: gauge(readings, 'pangea_sequences_waiting') },
        { label: 'jobs', data: gauge(readings, 'pangea_jobs_live') },
      ],
      empty: 'Nothing is queued.',
    },
    {
      title: 'Network',
      unit: 'rate',
      lines: [
        { label: 'sent', data: rate(readings, 'pangea_network_sent_bytes_total') },
        { label: 'received', data: rate(readings, 'pangea_network_received_bytes_total') },
      ],
      empty: 'This node runs without a network.',
    },
    { title: 'Memory by lease', unit: 'bytes', lines: each('pangea_memory_bytes', 'purpose', gauge), empty: 'No memory is leased.' },
    {
      title: 'HTTP requests per second',
      unit: 'number',
      lines: [{ label: 'requests', data: rate(readings, 'pangea_http_requests_total') }],
      empty: 'No requests.',
    },
  ]
  const isSaid = ({ data }: { data: Line }) => data.some((value) => value !== null)
  // Of many purposes, those that hold nothing say nothing.
  const isHeld = ({ data }: { data: Line }) => data.some((value) => value)
  return all.map((chart) => ({
    ...chart,
    lines: chart.lines.filter(chart.unit === 'bytes' ? isHeld : isSaid),
  }))
}

/** The latest value that is known. */
export function latest(data: Line): number | null {
  return data.findLast((value) => value !== null) ?? null
}
