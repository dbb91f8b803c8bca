// One chart of uPlot, which is fetched when the first one is shown. Colours come from the style sheet.

import uPlot from 'uplot'

type Data = (number | null)[][]

export interface Plot {
  show(data: Data): void
  close(): void
}

const HEIGHT = 180

/** What a chart shows: names of its lines, and how times (in seconds since 1970) and values are written. */
export interface Shown {
  labels: string[]
  time: (seconds: number) => string
  value: (value: number) => string
}

export function open(box: HTMLElement, { labels, time, value }: Shown, data: Data): Plot {
  const probe = box.appendChild(document.createElement('span'))
  const colour = (name: string) => {
    probe.style.color = `var(${name})`
    return getComputedStyle(probe).color
  }
  const axis = { stroke: colour('--muted'), grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false }, font: '11px system-ui' }
  const options: uPlot.Options = {
    width: Math.max(200, box.clientWidth),
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    scales: { y: { range: (_plot, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.1 : 1] } },
    axes: [
      { ...axis, space: 80, values: (_plot, splits) => splits.map(time) },
      { ...axis, size: 72, values: (_plot, splits) => splits.map(value) },
    ],
    series: [
      {},
      ...labels.map((label, index) => ({ label, stroke: colour(`--colour-${index % 8}`), width: 2, spanGaps: false, points: { show: false } })),
    ],
  }
  const aligned = (data: Data) => data as unknown as uPlot.AlignedData
  probe.remove()
  const plot = new uPlot(options, aligned(data), box)
  const resized = new ResizeObserver(() => plot.setSize({ width: Math.max(200, box.clientWidth), height: HEIGHT }))
  resized.observe(box)
  return {
    show: (data) => plot.setData(aligned(data)),
    close: () => {
      resized.disconnect()
      plot.destroy()
    },
  }
}
