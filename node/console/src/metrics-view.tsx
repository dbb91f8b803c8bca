// Charts of the node's metrics.

import { useEffect, useRef } from 'preact/hooks'

import { type Chart, charts, latest, type Reading } from './metrics'
import { Badge, Card, Empty, Scroll } from './parts'
import { type Prediction, slowness } from './predictions'
import { useMedia, useState } from './use'
import { bytes, clock, digits, seconds } from './units'

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
      <Predictions />
    </>
  )
}

function Predictions() {
  const list = useState((state) => state.predictions)
  const show = ({ kind }: Prediction, value: number) => (kind === 'product' ? seconds(value) : `${digits(value)} tokens/s`)
  return (
    <Card title="Predictions against reality">
      {list.length === 0 ? (
        <Empty>Multiply or ask something in this page: here is what the node predicted of it, and what it took.</Empty>
      ) : (
        <Scroll label="Predictions">
          <table>
            <thead>
              <tr>
                {['When', 'What', 'Predicted', 'Was', 'Slower than predicted'].map((title) => (
                  <th key={title} scope="col">
                    {title}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {list.map((one) => (
                <tr key={`${one.unix_ms} ${one.what}`}>
                  <td class="number">{clock(one.unix_ms)}</td>
                  <td>
                    {one.kind} <b>{one.what}</b>
                  </td>
                  <td class="number">{show(one, one.predicted)}</td>
                  <td class="number">{show(one, one.measured)}</td>
                  <td class="number">{digits(slowness(one))} times</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Scroll>
      )}
    </Card>
  )
}

function Plot({ chart, at }: { chart: Chart; at: number[] }) {
  const box = useRef<HTMLDivElement>(null)
  const plot = useRef<import('./chart').Plot | null>(null)
  const { title, unit, lines, empty } = chart
  const heading = `chart-${title.toLowerCase().replace(/\W+/g, '-')}`
  // The canvas knows no style sheet: it is drawn anew in other colours.
  const isDark = useMedia('(prefers-color-scheme: dark)')
  const names = lines.map(({ label }) => label).join()
  useEffect(() => {
    let isOpen = true
    void import('./chart').then(({ open }) => {
      if (!isOpen || !box.current || lines.length === 0) return
      const shown = { labels: lines.map(({ label }) => label), time: (seconds: number) => clock(1000 * seconds), value: SHOW[unit] }
      plot.current = open(box.current, shown, [at, ...lines.map(({ data }) => data)])
    })
    return () => {
      isOpen = false
      plot.current?.close()
      plot.current = null
    }
  }, [names, isDark])
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
