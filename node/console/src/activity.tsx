// Jobs, events and receipts, live and filterable.

import { useEffect, useMemo, useState as useLocal } from 'preact/hooks'

import { audit, readReceipts, showReceipt } from './effects'
import { filtered, filteredJobs, type Job, named } from './jobs'
import { Badge, Bar, Empty, Fact, Failure, Mark, Scroll } from './parts'
import { labeller, labelOf } from './pool'
import type { Receipt, ReceiptCheck } from './receipt'
import { bytes, clock, count, dateTime, layers, seconds } from './units'
import { useState } from './use'

const TABS = ['jobs', 'events', 'receipts'] as const

export function Activity() {
  const route = useState((state) => state.route)
  const open = TABS.find((tab) => tab === route[1]) ?? 'jobs'
  return (
    <div>
      <nav class="tabs" aria-label="Activity">
        {TABS.map((tab) => (
          <a key={tab} href={`#/activity/${tab}`} aria-current={tab === open ? 'page' : undefined}>
            {tab[0]?.toUpperCase() + tab.slice(1)}
          </a>
        ))}
      </nav>
      {open === 'jobs' && <JobList />}
      {open === 'events' && <EventList />}
      {open === 'receipts' && (route[2] ? <ReceiptPage id={route[2]} /> : <ReceiptList />)}
    </div>
  )
}

function Filter({ value, onChange, what }: { value: string; onChange: (value: string) => void; what: string }) {
  return (
    <label class="inline">
      Filter {what} <input type="search" value={value} onInput={(event) => onChange(event.currentTarget.value)} />
    </label>
  )
}

/** Columns that a narrow table does without. */
const MINOR = new Set(['For', 'Time', 'Submitted', 'Tokens', 'Stages', 'Failovers'])

/** Rows of a table that are drawn: what a person looks at. */
const ROWS = 200

function JobList() {
  const jobs = useState((state) => state.jobs.jobs)
  const [filter, setFilter] = useLocal('')
  const shown = useMemo(() => filteredJobs(jobs, filter), [jobs, filter])
  return (
    <section class="card" aria-labelledby="jobs-heading">
      <header class="card-head">
        <h2 id="jobs-heading">Jobs</h2>
        <Filter what="jobs" value={filter} onChange={setFilter} />
      </header>
      {shown.length === 0 ? (
        <Empty>{jobs.length === 0 ? 'No job since the node started.' : 'No job has these words.'}</Empty>
      ) : (
        <Scroll label="Jobs">
          <table>
            <thead>
              <tr>
                {['Job', 'What', 'For', 'State', 'Progress', 'Time', 'Submitted'].map((title) => (
                  <th key={title} scope="col" class={MINOR.has(title) ? 'minor' : undefined}>
                    {title}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {shown.slice(0, ROWS).map((job) => (
                <JobRow key={job.id} job={job} />
              ))}
            </tbody>
          </table>
        </Scroll>
      )}
      {shown.length > ROWS && <p class="fine">{count(shown.length - ROWS, 'older job')} not shown; filter to find one.</p>}
    </section>
  )
}

function JobRow({ job }: { job: Job }) {
  const pool = useState((state) => state.pool.pool)
  const end = job.ended_unix_ms ?? Date.now()
  return (
    <tr>
      <td class="number">{job.id}</td>
      <td>
        {job.kind} <b>{job.subject}</b>
        {job.stages.length > 1 && <p class="fine">{job.stages.map(({ peer }) => labelOf(pool, peer)).join(' → ')}</p>}
        {job.error && <p class="failure">{job.error.message}</p>}
      </td>
      <td class="minor">{job.owner.client ?? job.owner.api}</td>
      <td>
        <Badge text={job.state} /> {job.verdict && <Badge text={job.verdict} />} {job.failovers > 0 && <Badge text={count(job.failovers, 'failover')} tone="fair" />}
      </td>
      <td>
        {job.progress.total > 0 && <Bar label={`Progress of job ${job.id}`} value={job.progress.done} max={job.progress.total} />}{' '}
        <span class="fine">
          {amount(job)}
        </span>
      </td>
      <td class="number minor">{seconds(Math.max(0, end - job.submitted_unix_ms) / 1000)}</td>
      <td class="number minor">{clock(job.submitted_unix_ms)}</td>
    </tr>
  )
}

/** What is done of a job, in its own measure. */
function amount({ kind, progress: { done, total } }: Job): string {
  const show = kind === 'download' ? bytes : (value: number) => value.toLocaleString('en')
  return total > 0 ? `${show(done)} of ${show(total)}` : show(done)
}

const KINDS = ['job', 'node', 'link', 'master', 'model', 'trust', 'console']

function EventList() {
  const { log, live } = useState((state) => state.jobs)
  const [filter, setFilter] = useLocal('')
  const [kind, setKind] = useLocal('')
  const pool = useState((state) => state.pool.pool)
  const shown = useMemo(() => filtered(named(log, labeller(pool)), filter, kind), [log, pool, filter, kind])
  return (
    <section class="card" aria-labelledby="events-heading">
      <header class="card-head">
        <h2 id="events-heading">Events</h2>
        <Badge text={live ? 'live' : 'reconnecting'} tone={live ? 'good' : 'busy'} />
        <label class="inline">
          Kind{' '}
          <select value={kind} onChange={(event) => setKind(event.currentTarget.value)}>
            <option value="">all</option>
            {KINDS.map((kind) => (
              <option key={kind}>{kind}</option>
            ))}
          </select>
        </label>
        <Filter what="events" value={filter} onChange={setFilter} />
      </header>
      {shown.length === 0 && <Empty>{log.length === 0 ? 'Nothing has happened since this page was opened.' : 'No event has these words.'}</Empty>}
      <ol class="log" aria-label="Events, the latest first" tabIndex={0}>
        {shown.slice(0, ROWS).map((line) => (
          <li key={line.number}>
            <time>{clock(line.unix_ms)}</time> <Badge text={line.kind} tone="plain" /> {line.text}
          </li>
        ))}
      </ol>
    </section>
  )
}

function ReceiptList() {
  const { list, error } = useState((state) => state.receipts)
  const [filter, setFilter] = useLocal('')
  useEffect(() => {
    void readReceipts()
    const timer = setInterval(readReceipts, 3000)
    return () => clearInterval(timer)
  }, [])
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean)
  const shown = list.filter((receipt) => words.every((word) => `${receipt.id} ${receipt.model} ${receipt.verdict}`.toLowerCase().includes(word)))
  return (
    <section class="card" aria-labelledby="receipts-heading">
      <header class="card-head">
        <h2 id="receipts-heading">Receipts</h2>
        <Filter what="receipts" value={filter} onChange={setFilter} />
      </header>
      <Failure text={error} />
      {shown.length === 0 ? (
        <Empty>{list.length === 0 ? 'No receipts yet. A node keeps one of each answer that other nodes helped to compute.' : 'No receipt has these words.'}</Empty>
      ) : (
        <Scroll label="Receipts">
          <table>
            <thead>
              <tr>
                {['Receipt', 'When', 'Model', 'Tokens', 'Stages', 'Failovers', 'Verdict'].map((title) => (
                  <th key={title} scope="col" class={MINOR.has(title) ? 'minor' : undefined}>
                    {title}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {shown.map((receipt) => (
                <tr key={receipt.id}>
                  <td>
                    <a href={`#/activity/receipts/${receipt.id}`}>{receipt.id}</a>
                  </td>
                  <td>{dateTime(receipt.unix_ms)}</td>
                  <td>{receipt.model}</td>
                  <td class="number minor">{receipt.answer_tokens}</td>
                  <td class="number minor">{receipt.stages}</td>
                  <td class="number minor">{receipt.failovers}</td>
                  <td>
                    <Badge text={receipt.verdict} />
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </Scroll>
      )}
    </section>
  )
}

function ReceiptPage({ id }: { id: string }) {
  const { shown, check, audit: audited, wrong, error } = useState((state) => state.receipts)
  const pool = useState((state) => state.pool.pool)
  useEffect(() => {
    void showReceipt(id)
  }, [id])
  return (
    <section class="card" aria-labelledby="receipt-heading">
      <header class="card-head">
        <h2 id="receipt-heading">Receipt {id}</h2>
        <a href="#/activity/receipts">All receipts</a>
      </header>
      <Failure text={error} />
      {shown && (
        <>
          <dl class="facts">
            <Fact name="When">{dateTime(shown.unix_ms)}</Fact>
            <Fact name="Model">{shown.model.name}</Fact>
            <Fact name="Digest">
              <code>{shown.model.digest.slice(0, 12)}…</code>
            </Fact>
            <Fact name="Asked by">{labelOf(pool, shown.coordinator)}</Fact>
            <Fact name="Tokens">
              {shown.answer_tokens.length} after {shown.prompt_tokens.length} of the prompt
            </Fact>
            <Fact name="Verdict">
              <Badge text={shown.verdict} />
            </Fact>
          </dl>
          <h3>Signatures, checked by this browser</h3>
          {check ? <Signatures receipt={shown} check={check} /> : !error && <p class="fine">Checking…</p>}
          <h3>Weights, computed again by the node</h3>
          <p class="buttons">
            <button class="primary" disabled={audited === 'running'} onClick={() => audit(id)}>
              {audited === 'running' ? 'Computing…' : 'Compute the answer again'}
            </button>
          </p>
          {audited !== 'idle' && audited !== 'running' && audited !== 'done' && <Failure text={audited} />}
          {audited === 'done' && (
            <p role="status">
              {wrong.length === 0 ? 'Every stage gave what the model gives.' : `Wrong outputs: ${wrong.map((peer) => labelOf(pool, peer)).join(', ')}.`}
            </p>
          )}
          <Audits receipt={shown} />
        </>
      )}
    </section>
  )
}

function Signatures({ receipt, check }: { receipt: Receipt; check: ReceiptCheck }) {
  const pool = useState((state) => state.pool.pool)
  return (
    <>
      <p role="status" class={check.holds ? 'mark good' : 'mark bad'}>
        {check.holds ? '✓ The chain of signatures holds.' : '✗ The chain of signatures does not hold.'}
      </p>
      {check.segments.map((segment, index) => (
        <Scroll key={index} label={`Stages of segment ${index + 1}`}>
          {receipt.segments.length > 1 && (
            <p class="fine">
              Segment {index + 1}
              {segment.ended ? `, which ended early: ${segment.ended}` : ''}
            </p>
          )}
          <table>
            <thead>
              <tr>
                {['Layers', 'Node', 'Signed', 'As asked', 'Linked', 'Received'].map((title) => (
                  <th key={title} scope="col">
                    {title}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {segment.stages.map((stage) => (
                <tr key={stage.layers[0]}>
                  <td>{layers(stage.layers)}</td>
                  <td title={stage.peer}>{labelOf(pool, stage.peer)}</td>
                  {[stage.signed, stage.asked, stage.linked, stage.received].map((holds, at) => (
                    <td key={at}>
                      <Mark holds={holds} />
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </Scroll>
      ))}
    </>
  )
}

function Audits({ receipt }: { receipt: Receipt }) {
  const pool = useState((state) => state.pool.pool)
  if (receipt.audits.length === 0) return <p class="fine">No audit so far.</p>
  return (
    <ul class="plain">
      {receipt.audits.map((one, index) => (
        <li key={index}>
          <Mark holds={one.holds} /> {layers(receipt.segments[one.segment]?.stages[one.stage]?.layers ?? [0, 1])}, by {labelOf(pool, one.by)}, {dateTime(one.unix_ms)}
        </li>
      ))}
    </ul>
  )
}
