// Models: what is served and loaded, what is on disk, where a model would be placed, downloads.

import { useEffect, useState as useLocal } from 'preact/hooks'

import { change, forget, hidePlan, pause, plan, pull, readDisk } from './effects'
import { type Chain, type DiskModel, type Download, fetchable, loadable, type Plan, type ServedModel } from './models'
import { Badge, Bar, Card, Empty, Failure, Scroll } from './parts'
import { labels } from './pool'
import { bytes, count, digits, layers, percent } from './units'
import { useState } from './use'

export function ModelsView() {
  const models = useState((state) => state.models)
  useEffect(() => {
    readDisk().catch(() => {})
  }, [])
  const served = models.served.filter(({ state }) => state !== 'dropped')
  return (
    <div class="columns">
      <section class="wide" aria-labelledby="served-heading">
        <h2 id="served-heading">Served</h2>
        {served.length === 0 && <Empty>No model is served. Load one from the disk, or download one.</Empty>}
        <ul class="nodes models">
          {served.map((model) => (
            <Served key={model.name} model={model} />
          ))}
        </ul>
      </section>
      <Card title="On disk">
        {loadable(models).length === 0 && <Empty>No other model is on this machine.</Empty>}
        <ul class="plain">
          {loadable(models).map((model) => (
            <OnDisk key={model.name} model={model} />
          ))}
        </ul>
      </Card>
      <Card title="Download">
        <Pull known={fetchable(models).map(({ name, size_bytes, licence }) => ({ name, text: `${name} (${bytes(size_bytes)}, ${licence})` }))} />
        <ul class="plain">
          {models.downloads.map((download) => (
            <Transfer key={download.model} download={download} />
          ))}
        </ul>
      </Card>
    </div>
  )
}

function Served({ model }: { model: ServedModel }) {
  const asked = useState((state) => state.models.asked[model.name])
  const found = useState((state) => state.models.plans[model.name])
  const busy = asked !== undefined && asked.error === null
  return (
    <li class="card">
      <h3>
        {model.name} <Badge text={model.state} />
      </h3>
      {model.why && <p class={model.state === 'failed' ? 'failure' : 'fine'}>{model.why}</p>}
      {model.model && (
        <p class="fine">
          {model.model.architecture}, {count(model.model.layers, 'layer')}, context {model.model.context.toLocaleString('en')}
          {model.model.memory_bytes > 0 && `, ${bytes(model.model.memory_bytes)} in memory`}
        </p>
      )}
      <p class="fine">
        {count(model.running, 'answer')} running, {model.waiting} waiting
      </p>
      <Loading name={model.name} />
      <Failure text={asked?.error ?? null} />
      <p class="buttons">
        <PlanButton name={model.name} isOpen={found !== undefined} />
        <Drop name={model.name} busy={busy} />
      </p>
      {found && <Placement found={found} />}
    </li>
  )
}

/** Dropping takes a model from the whole pool, so that a second press confirms it. */
function Drop({ name, busy }: { name: string; busy: boolean }) {
  const [sure, setSure] = useLocal(false)
  return (
    <button
      disabled={busy}
      onBlur={() => setSure(false)}
      onClick={() => {
        if (sure) void change('drop', name)
        setSure(!sure)
      }}
    >
      {sure ? `Drop ${name} in the whole pool?` : 'Drop'}
    </button>
  )
}

function PlanButton({ name, isOpen }: { name: string; isOpen: boolean }) {
  return (
    <button aria-expanded={isOpen} onClick={() => (isOpen ? hidePlan(name) : plan(name))}>
      Placement
    </button>
  )
}

/** The stages of a model on every node, while they are fetched and loaded. */
function Loading({ name }: { name: string }) {
  const pool = useState((state) => state.pool.pool)
  if (!pool) return null
  const names = labels(pool.nodes)
  const stages = pool.nodes.flatMap((node) => node.stages.filter((stage) => stage.name === name).map((stage) => ({ stage, node: names.get(node.peer) ?? '' })))
  if (stages.length === 0) return null
  return (
    <ul class="plain holds">
      {stages.map(({ stage, node }) => (
        <li key={`${node} ${stage.epoch} ${stage.layers[0]}`}>
          {node}: {layers(stage.layers)} <Badge text={stage.state} />
          {stage.state === 'fetching' && (
            <>
              <Bar label={`${name} fetched by ${node}`} value={stage.done_bytes} max={stage.total_bytes} />
              <span class="fine">
                {bytes(stage.done_bytes)} of {bytes(stage.total_bytes)}
              </span>
            </>
          )}
          {stage.why && <span class="failure">{stage.why}</span>}
        </li>
      ))}
    </ul>
  )
}

function OnDisk({ model }: { model: DiskModel }) {
  const asked = useState((state) => state.models.asked[model.name])
  const found = useState((state) => state.models.plans[model.name])
  const busy = asked !== undefined && asked.error === null
  return (
    <li>
      <h3>{model.name}</h3>
      <p class="fine">
        {[model.architecture, model.parameters && `${digits(model.parameters / 1e6)} M parameters`, model.quantisation, bytes(model.size_bytes)].filter(Boolean).join(', ')}
      </p>
      <Failure text={model.problem ?? null} />
      {busy && (
        <p class="fine" role="status">
          Loading…
        </p>
      )}
      <Failure text={asked?.error ?? null} />
      <p class="buttons">
        <PlanButton name={model.name} isOpen={found !== undefined} />
        <button class="primary" disabled={busy || model.problem !== undefined} onClick={() => change('load', model.name)}>
          Load
        </button>
      </p>
      {found && <Placement found={found} />}
    </li>
  )
}

function Placement({ found }: { found: Plan | { error: string } }) {
  if ('error' in found) return <Failure text={found.error} />
  const rows: [string, Chain][] = [
    ...(found.current ? ([[found.ready ? 'now' : 'forming', found.current]] as [string, Chain][]) : []),
    ...(found.best ? ([['best', found.best]] as [string, Chain][]) : []),
    ...found.alternatives.map((chain): [string, Chain] => ['or', chain]),
  ]
  return (
    <div class="placement">
      <p>
        {count(found.layers, 'layer')}, {bytes(found.weight_bytes)} of weights, {bytes(found.session_bytes)} for sessions.{' '}
        {found.best ? found.reason : `No plan: ${found.reason}`}.
      </p>
      {rows.length > 0 && (
        <Scroll label={`Placements of ${found.model}`}>
          <table>
            <thead>
              <tr>
                <th scope="col">Plan</th>
                <th scope="col">Chain</th>
                <th scope="col">Answer tok/s</th>
                <th scope="col">Prompt tok/s</th>
              </tr>
            </thead>
            <tbody>
              {rows.map(([what, chain], index) => (
                <tr key={index}>
                  <td>{what}</td>
                  <td>{chain.stages.map(({ name, layers: of }) => `${name} (${layers(of)})`).join(' → ')}</td>
                  <td class="number">{chain.decode_tokens_per_s > 0 ? digits(chain.decode_tokens_per_s) : '–'}</td>
                  <td class="number">{chain.prompt_tokens_per_s > 0 ? digits(chain.prompt_tokens_per_s) : '–'}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Scroll>
      )}
    </div>
  )
}

function Pull({ known }: { known: { name: string; text: string }[] }) {
  const [model, setModel] = useLocal('')
  return (
    <form
      class="row"
      onSubmit={(event) => {
        event.preventDefault()
        if (model.trim()) void pull(model.trim())
      }}
    >
      <label for="pull">A name, hf:OWNER/REPO/FILE.gguf or an https address</label>
      <input id="pull" list="known" value={model} onInput={(event) => setModel(event.currentTarget.value)} placeholder={known[0]?.name ?? 'hf:…'} />
      <datalist id="known">
        {known.map(({ name, text }) => (
          <option key={name} value={name}>
            {text}
          </option>
        ))}
      </datalist>
      <button class="primary" type="submit" disabled={!model.trim()}>
        Download
      </button>
    </form>
  )
}

function Transfer({ download }: { download: Download }) {
  const { model, phase, done_bytes, total_bytes, state } = download
  return (
    <li>
      <p>
        <b>{model}</b>{' '}
        {state === 'running' ? `${phase}${total_bytes > 0 ? `, ${percent(done_bytes / total_bytes)} of ${bytes(total_bytes)}` : ''}` : state === 'done' ? <Badge text="done" /> : state}
      </p>
      {state === 'running' && <Bar label={`${model} downloaded`} value={done_bytes} max={total_bytes} />}
      <p class="buttons">
        {state === 'running' && <button onClick={() => pause(model)}>Pause</button>}
        {state !== 'running' && state !== 'done' && (
          <button class="primary" onClick={() => pull(model)}>
            Resume
          </button>
        )}
        {state !== 'running' && <button onClick={() => forget(model)}>Forget</button>}
      </p>
    </li>
  )
}
