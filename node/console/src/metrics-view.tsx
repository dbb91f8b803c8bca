// Charts of the node's metrics.

import { useEffect, useRef } from 'preact/hooks'

import { type Chart, charts, latest, type Reading } from './metrics'
import { Badge, Empty } from './parts'
import { useState } from './use'
import { bytes, digits, seconds } from './units'

const SHOW: Record<Chart['unit'], (value: number) => string> = { number: digits, bytes, rate: (value) => `${bytes(value)}/s`, seconds }

export function MetricsView() {
  const readings = useState((state) => state.metrics.readings)
  const jobs = useState((state) => state.jobs.jobs)
  if (readings.length < 2) return <Empty>Reading the metrics…</Empty>
  const since = (readings.at(-1) as Reading).at - (readings[0] as Reading).at
  return (
    <>
      <p class="fine">
        The last {seconds(since)}, from <a href="/metrics">/metrics</a>. Kept in this page only. {jobs.length > 0 && `${jobs.length} jobs are listed under Activity.`}
      </p>
      <div class="charts">
        {charts(readings).map((chart) => (
          <Plot key={chart.title} chart={chart} at={readings.map(({ at }) => at)} />
        ))}
      </div>
    </>
  )
}

function Plot({ chart, at }: { chart: Chart; at: number[] }) {
  const box = useRef<HTMLDivElement>(null)
  const plot = useRef<import('./chart').Plot | null>(null)
  const { title, unit, lines, empty } = chart
  const heading = `chart-${title.toLowerCase().replace(/\W+/g, '-')}`
  const names = lines.map(({ label }) => label).join()
  useEffect(() => {
    let isOpen = true
    void import('./chart').then(({ open }) => {
      if (isOpen && box.current && lines.length > 0) plot.current = open(box.current, lines.map(({ label }) => label), SHOW[unit], [at, ...lines.map(({ data }) => data)])
    })
    return () => {
      isOpen = false
      plot.current?.close()
      plot.current = null
    }
  }, [names])
  useEffect(() => plot.current?.show([at, ...lines.map(({ data }) => data)]), [at.at(-1)])
  return (
    <section class="card chart" aria-labelledby={heading}>
      <h2 id={heading}>{title}</h2>
      {lines.length === 0 ? <Empty>{empty}</Empty> : <div ref={box} aria-hidden="true" />}
      <ul class="legend">
        {lines.map(({ label, data }, index) => {
          const value = latest(data)
          return (
            <li key={label}>
              <svg viewBox="0 0 1 1" aria-hidden="true">
                <rect class={`colour-${index % 8}`} width="1" height="1" />
              </svg>
              {label} <Badge text={value === null ? '–' : SHOW[unit](value)} tone="plain" />
            </li>
          )
        })}
      </ul>
    </section>
  )
}
