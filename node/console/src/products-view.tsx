// A product of two matrices: files or sizes, its tiles as they land on nodes, the verdict, the file.

import { useMemo, useState as useLocal } from 'preact/hooks'

import { cancelProduct, multiply } from './effects'
import { Badge, Bar, Card, Empty, Fact, Failure } from './parts'
import { labelOf } from './pool'
import { problem, type ProductState, WIDTHS } from './products'
import { bytes, count, digits, percent, seconds } from './units'
import { useState } from './use'

export function Products() {
  const product = useState((state) => state.product)
  const isBusy = ['sending', 'running', 'receiving'].includes(product.phase)
  return (
    <div class="columns">
      <Card title="Multiply">
        <Sizes busy={isBusy} />
        <hr />
        <Files busy={isBusy} />
      </Card>
      <Card title="Product" more={isBusy ? <button onClick={cancelProduct}>Cancel</button> : undefined}>
        {product.phase === 'idle' ? <Empty>The tiles appear here as they land, each in the colour of its node.</Empty> : <Result product={product} />}
      </Card>
    </div>
  )
}

function Sizes({ busy }: { busy: boolean }) {
  const limit = useState((state) => state.status?.memory_limit_bytes ?? 0)
  const [sizes, setSizes] = useLocal({ m: 2048, k: 2048, n: 2048, dtype: 'f32', seed: 1, place: 'auto' })
  const wrong = problem(sizes, limit)
  return (
    <form
      class="row"
      aria-label="Matrices of pseudo-random numbers"
      onSubmit={(event) => {
        event.preventDefault()
        if (!wrong && !busy) void multiply(sizes)
      }}
    >
      {(['m', 'k', 'n'] as const).map((side) => (
        <label key={side}>
          {side}
          <input type="number" min="1" step="1" value={sizes[side]} onInput={(event) => setSizes({ ...sizes, [side]: Number(event.currentTarget.value) })} />
        </label>
      ))}
      <label>
        dtype
        <select value={sizes.dtype} onChange={(event) => setSizes({ ...sizes, dtype: event.currentTarget.value })}>
          {Object.keys(WIDTHS).map((dtype) => (
            <option key={dtype}>{dtype}</option>
          ))}
        </select>
      </label>
      <label>
        seed
        <input type="number" min="0" step="1" value={sizes.seed} onInput={(event) => setSizes({ ...sizes, seed: Number(event.currentTarget.value) })} />
      </label>
      <label>
        place
        <select value={sizes.place} onChange={(event) => setSizes({ ...sizes, place: event.currentTarget.value })}>
          {['auto', 'local', 'remote'].map((place) => (
            <option key={place}>{place}</option>
          ))}
        </select>
      </label>
      <Failure text={wrong} />
      <button class="primary" type="submit" disabled={busy || wrong !== null}>
        Multiply random matrices
      </button>
    </form>
  )
}

function Files({ busy }: { busy: boolean }) {
  const [files, setFiles] = useLocal<(File | null)[]>([null, null])
  const [over, setOver] = useLocal(false)
  const [a, b] = files
  const take = (dropped: File[]) => {
    // One more file fills the place that is free.
    if (dropped.length >= 2) setFiles(dropped.slice(0, 2))
    else if (dropped[0]) setFiles(a ? [a, dropped[0]] : [dropped[0], b ?? null])
  }
  return (
    <form
      class={`row drop${over ? ' over' : ''}`}
      aria-label="Two .npy files"
      onDragOver={(event) => {
        event.preventDefault()
        setOver(true)
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault()
        setOver(false)
        take([...(event.dataTransfer?.files ?? [])])
      }}
      onSubmit={(event) => {
        event.preventDefault()
        if (a && b && !busy) void multiply([a, b])
      }}
    >
      <p class="fine">Drop two .npy files here, or choose them.</p>
      {(['A', 'B'] as const).map((name, at) => (
        <label key={name}>
          {name}
          <input type="file" accept=".npy" onChange={(event) => setFiles(files.with(at, event.currentTarget.files?.[0] ?? null))} />
        </label>
      ))}
      {(a || b) && <p class="fine">{`A: ${fileText(a)}, B: ${fileText(b)}`}</p>}
      <button class="primary" type="submit" disabled={!a || !b || busy}>
        Multiply files
      </button>
    </form>
  )
}

function fileText(file: File | null | undefined): string {
  return file ? `${file.name} (${bytes(file.size)})` : '–'
}

function Result({ product }: { product: ProductState }) {
  const pool = useState((state) => state.pool.pool)
  const { shape, grid, tiles, report, download } = product
  const workers = useMemo(() => {
    const tasks = new Map<string, number>()
    for (const { peer } of tiles) tasks.set(peer, (tasks.get(peer) ?? 0) + 1)
    return [...tasks].sort(([one], [other]) => (one < other ? -1 : 1))
  }, [tiles])
  const colour = (peer: string) => workers.findIndex(([of]) => of === peer) % COLOURS
  const total = grid ? grid.bands * grid.panels : 0
  return (
    <>
      <p role="status">
        {product.phase === 'sending' && 'Sending the operands…'}
        {shape && `[${shape[0]}, ${shape[1]}] · [${shape[1]}, ${shape[2]}], ${product.dtype}: `}
        {total > 0 && `${tiles.length} of ${count(total, 'tile')}`}
        {report && (
          <>
            {' '}
            <Badge text={report.verification.verdict} />
          </>
        )}
      </p>
      <Failure text={product.error} />
      {grid && (
        <svg class="tiles" viewBox={`0 0 ${grid.panels} ${grid.bands}`} preserveAspectRatio="none" role="img" aria-label={`${tiles.length} of ${count(total, 'tile')} have landed`}>
          <path class="empty-tiles" d={`M0 0h${grid.panels}v${grid.bands}h-${grid.panels}z`} />
          {tiles.map(({ band, panel, peer }) => (
            <rect key={`${band} ${panel}`} class={`colour-${colour(peer)}`} x={panel + gap(grid.panels)} y={band + gap(grid.bands)} width={1 - 2 * gap(grid.panels)} height={1 - 2 * gap(grid.bands)} />
          ))}
        </svg>
      )}
      {workers.length > 0 && (
        <ul class="legend" aria-label="Nodes">
          {workers.map(([peer, tasks]) => (
            <li key={peer}>
              <svg viewBox="0 0 1 1" aria-hidden="true">
                <rect class={`colour-${colour(peer)}`} width="1" height="1" />
              </svg>
              {labelOf(pool, peer)} <span class="fine">{count(tasks, 'tile')}</span>
            </li>
          ))}
        </ul>
      )}
      {report && (
        <dl class="facts">
          <Fact name="Time">{seconds(report.seconds)}</Fact>
          <Fact name="Speed">{digits(report.gflops)} GFLOP/s</Fact>
          <Fact name="Mode">{report.mode}</Fact>
          <Fact name="Tasks">
            {report.tasks.remote} remote, {report.tasks.local} local, {report.tasks.retried} retried, {report.tasks.hedged} hedged
          </Fact>
          <Fact name="Bytes">
            ↑ {bytes(report.bytes_sent)} ↓ {bytes(report.bytes_received)}
          </Fact>
          <Fact name="Checked by">{report.verification.method}</Fact>
          {report.predicted_seconds > 0 && (
            <Fact name="Predicted">
              {seconds(report.predicted_seconds)} <span class="fine">({percent(report.seconds / report.predicted_seconds)} of it)</span>
            </Fact>
          )}
        </dl>
      )}
      {product.phase === 'receiving' && <Bar label="Product received" value={product.received_bytes} max={product.total_bytes} />}
      {download && (
        <a class="button primary" href={download.url} download={download.name}>
          Save {download.name} ({bytes(download.bytes)})
        </a>
      )}
    </>
  )
}

/** The part of a tile's side that stays free on each side: about a pixel, whatever the number of tiles. */
function gap(tiles: number): number {
  return Math.min(0.0025 * tiles, 0.1)
}

/** Colours of the style sheet, by which workers are told apart. */
const COLOURS = 8
