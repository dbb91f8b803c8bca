// Pieces that several views share.

import type { ComponentChildren } from 'preact'

import { chain, type Job } from './jobs'
import { labeller, type Pool } from './pool'

export function Card({ title, more, children, id }: { title: string; more?: ComponentChildren; children: ComponentChildren; id?: string }) {
  const heading = `${id ?? title.toLowerCase().replace(/\W+/g, '-')}-heading`
  return (
    <section class="card" aria-labelledby={heading}>
      <header class="card-head">
        <h2 id={heading}>{title}</h2>
        {more}
      </header>
      {children}
    </section>
  )
}

const TONES: Record<string, string> = {
  ready: 'good',
  done: 'good',
  verified: 'good',
  audited: 'good',
  local: 'good',
  connected: 'good',
  running: 'busy',
  waiting: 'busy',
  loading: 'busy',
  fetching: 'busy',
  pending: 'busy',
  comparing: 'busy',
  'tolerance-checked': 'fair',
  unchecked: 'fair',
  unloaded: 'fair',
  absent: 'fair',
  unplaced: 'bad',
  unproven: 'fair',
  failed: 'bad',
  cancelled: 'fair',
  revoked: 'bad',
  quarantined: 'bad',
  suspect: 'bad',
}

/** A state or a verdict, in a colour and in words. */
export function Badge({ text, tone }: { text: string; tone?: string }) {
  return <span class={`badge ${tone ?? TONES[text] ?? 'plain'}`}>{text}</span>
}

/** Which nodes an answer has lost, why, and which go on with it. */
export function Failover({ failover, pool }: { failover: NonNullable<Job['failover']>; pool: Pool | null }) {
  const nameOf = labeller(pool)
  return (
    <p class="failover" role="status">
      <Badge text="failover" tone="fair" /> <s>{chain(failover.from, nameOf)}</s>{' '}
      {failover.to.length > 0 ? `→ ${chain(failover.to, nameOf)}` : 'looking for other nodes'} <span class="fine">({failover.why})</span>
    </p>
  )
}

export function Empty({ children }: { children: ComponentChildren }) {
  return <p class="empty">{children}</p>
}

export function Failure({ text }: { text: string | null }) {
  return text ? (
    <p class="failure" role="alert">
      {text}
    </p>
  ) : null
}

/** A value with its name. */
export function Fact({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <div class="fact">
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  )
}

export function Bar({ label, value, max }: { label: string; value: number; max: number }) {
  return <progress aria-label={label} value={Math.min(value, max)} max={max > 0 ? max : 1} />
}

/** Whether something holds, in words for those who do not see the colour. */
export function Mark({ holds }: { holds: boolean }) {
  return <span class={holds ? 'mark good' : 'mark bad'}>{holds ? '✓ yes' : '✗ NO'}</span>
}

/** A table that scrolls within itself where the page is narrow. */
export function Scroll({ label, children }: { label: string; children: ComponentChildren }) {
  return (
    // Whoever uses the keyboard scrolls it by its focus.
    <div class="scroll" role="group" aria-label={label} tabIndex={0}>
      {children}
    </div>
  )
}
