// Jobs and the log of what happened. Pure.

import type { Happened, LayerRange } from './pool'
import { layers } from './units'

export interface Job {
  id: number
  kind: string
  subject: string
  owner: { api: string; client: string | null }
  state: string
  /** Tasks, tokens of answers, or bytes of a download. */
  progress: { done: number; total: number }
  /** Tokens before the next one of an answer: how many are computed. */
  prompt: { done: number; total: number }
  /** The nodes that compute an answer; none while they are looked for. */
  stages: JobStage[]
  failovers: number
  /** The last loss of nodes; `to` is empty until others go on. */
  failover: { from: JobStage[]; to: JobStage[]; why: string } | null
  submitted_unix_ms: number
  started_unix_ms: number | null
  ended_unix_ms: number | null
  deadline_unix_ms: number | null
  verdict: string | null
  error: { kind: string; message: string } | null
}

export interface JobStage {
  peer: string
  layers: LayerRange
}

export interface LogLine {
  /** Grows by one with every line. */
  number: number
  unix_ms: number
  kind: Happened['kind'] | 'job' | 'console'
  text: string
  /** Peer ids in the text, whose names may become known later: `named` puts them there. */
  peers?: string[]
}

export interface JobsState {
  /** The latest submitted first. */
  jobs: Job[]
  /** The latest first. */
  log: LogLine[]
  /** Whether events arrive. */
  live: boolean
}

/** A line of the log before it has its number and time. */
type Said = Pick<LogLine, 'kind' | 'text' | 'peers'>

/** Lines of the log that are kept: what a person scrolls through. */
export const LOG_LINES = 500

/** Jobs that are kept, as the node keeps. */
export const JOBS = 500

export const noJobs: JobsState = { jobs: [], log: [], live: false }

export type JobsAction =
  | { type: 'jobs'; jobs: Job[] }
  | { type: 'job'; event: string; job: Job; unix_ms: number }
  | { type: 'live'; live: boolean }
  | { type: 'happened'; lines: Said[]; unix_ms: number }

const running = new Set(['waiting', 'running'])

export function isLive(job: Job): boolean {
  return running.has(job.state)
}

export function reduceJobs(state: JobsState, action: JobsAction): JobsState {
  switch (action.type) {
    case 'jobs':
      return { ...state, jobs: action.jobs.slice(0, JOBS) }
    case 'job': {
      const jobs = replaced(state.jobs, action.job)
      // Progress is told by the job's bar; the log has beginnings and ends.
      const before = state.jobs.find((job) => job.id === action.job.id)
      const moved = movement(action.event, action.job)
      if (moved) return logged({ ...state, jobs }, [moved], action.unix_ms)
      if (before?.state === action.job.state) return { ...state, jobs }
      return logged({ ...state, jobs }, [{ kind: 'job', text: sentence(action.job) }], action.unix_ms)
    }
    case 'live':
      return state.live === action.live ? state : { ...state, live: action.live }
    case 'happened':
      return action.lines.length === 0 ? state : logged(state, action.lines, action.unix_ms)
  }
}

function replaced(jobs: Job[], job: Job): Job[] {
  const at = jobs.findIndex((other) => other.id === job.id)
  if (at >= 0) return jobs.with(at, job)
  return [job, ...jobs].slice(0, JOBS)
}

function logged(state: JobsState, lines: Said[], unix_ms: number): JobsState {
  const number = state.log[0]?.number ?? 0
  const added = lines.map((line, index) => ({ ...line, number: number + index + 1, unix_ms }))
  return { ...state, log: [...added.reverse(), ...state.log].slice(0, LOG_LINES) }
}

/** Nodes with their layers, in the order in which activations travel. */
export function chain(stages: JobStage[], nameOf: (peer: string) => string): string {
  return stages.map(({ peer, layers: of }) => `${nameOf(peer)} (${layers(of)})`).join(' → ')
}

/** That a job has lost its nodes, or that others go on with it. */
function movement(event: string, { id, failover }: Job): Said | null {
  if (!failover) return null
  const peers = [...failover.from, ...failover.to].map(({ peer }) => peer)
  const ids = (stages: JobStage[]) => chain(stages, (peer) => peer)
  if (event === 'job.lost') return { kind: 'job', text: `Job ${id} has lost ${ids(failover.from)}: ${failover.why}`, peers }
  return event === 'job.failover' ? { kind: 'job', text: `Job ${id} goes on at ${ids(failover.to)}`, peers } : null
}

/** The lines with the names of peers instead of their ids. */
export function named(log: LogLine[], nameOf: (peer: string) => string): LogLine[] {
  return log.map((line) => {
    if (!line.peers) return line
    return { ...line, text: line.peers.reduce((text, peer) => text.replaceAll(peer, nameOf(peer)), line.text) }
  })
}

function sentence(job: Job): string {
  const what = `Job ${job.id}, ${job.kind} of ${job.subject}`
  if (job.error) return `${what}: ${job.state}: ${job.error.message}`
  return `${what}: ${job.state}${job.verdict ? `, ${job.verdict}` : ''}`
}

/** The lines that have every word of `filter`, of one kind unless that is empty. */
export function filtered(log: LogLine[], filter: string, kind: string): LogLine[] {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean)
  return log.filter((line) => {
    const text = line.text.toLowerCase()
    return (!kind || line.kind === kind) && words.every((word) => text.includes(word))
  })
}

/** The jobs in which every word of `filter` occurs. */
export function filteredJobs(jobs: Job[], filter: string): Job[] {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean)
  if (words.length === 0) return jobs
  return jobs.filter((job) => {
    const text = `${job.id} ${job.kind} ${job.subject} ${job.state} ${job.owner.api} ${job.verdict ?? ''}`.toLowerCase()
    return words.every((word) => text.includes(word))
  })
}
