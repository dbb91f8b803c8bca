import { expect, test } from 'vitest'

import { filtered, filteredJobs, type Job, JOBS, LOG_LINES, named, noJobs, reduceJobs } from '../src/jobs'

function job(id: number, state: string, more: Partial<Job> = {}): Job {
  return {
    id,
    kind: 'product',
    subject: '2x2x2 f32',
    owner: { api: 'http', client: null },
    state,
    progress: { done: 0, total: 4 },
    prompt: { done: 0, total: 0 },
    stages: [],
    failovers: 0,
    failover: null,
    submitted_unix_ms: 1,
    started_unix_ms: null,
    ended_unix_ms: null,
    deadline_unix_ms: null,
    verdict: null,
    error: null,
    ...more,
  }
}

const told = (state = noJobs, ...jobs: Job[]) =>
  jobs.reduce((state, job) => reduceJobs(state, { type: 'job', event: 'x', job, unix_ms: 7 }), state)

test('an event changes its job, and only a new state is a line of the log', () => {
  const running = { ...job(1, 'running'), progress: { done: 3, total: 4 } }
  const state = told(noJobs, job(1, 'waiting'), job(2, 'waiting'), job(1, 'running'), running)
  expect(state.jobs.map(({ id, state, progress }) => [id, state, progress.done])).toEqual([
    [2, 'waiting', 0],
    [1, 'running', 3],
  ])
  expect(state.log.map(({ number, text }) => [number, text])).toEqual([
    [3, 'Job 1, product of 2x2x2 f32: running'],
    [2, 'Job 2, product of 2x2x2 f32: waiting'],
    [1, 'Job 1, product of 2x2x2 f32: waiting'],
  ])
})

test('lost nodes and those that go on are lines of the log, with their names', () => {
  const [from, to] = [[{ peer: 'peer-a', layers: [0, 15] as [number, number] }], [{ peer: 'peer-b', layers: [0, 30] as [number, number] }]]
  const lost = job(1, 'running', { failover: { from, to: [], why: 'stage peer-a is gone' } })
  const moved = job(1, 'running', { failover: { from, to, why: 'stage peer-a is gone' }, stages: to })
  const say = (event: string, job: Job) => ({ type: 'job', event, job, unix_ms: 7 }) as const
  const events = [say('job.started', job(1, 'running')), say('job.lost', lost), say('job.failover', moved), say('job.progress', moved)]
  const state = events.reduce((state, action) => reduceJobs(state, action), noJobs)
  // The names may be known only after the events.
  const nameOf = (peer: string) => ({ 'peer-a': 'alpha', 'peer-b': 'beta' })[peer] ?? peer
  expect(named(state.log, nameOf).map(({ text }) => text)).toEqual([
    'Job 1 goes on at beta (layers 0–29)',
    'Job 1 has lost alpha (layers 0–14): stage alpha is gone',
    'Job 1, product of 2x2x2 f32: running',
  ])
  expect(state.jobs[0]?.stages).toEqual(to)
})

test('an end is told with its verdict or its reason', () => {
  const failed = job(2, 'failed', { error: { kind: 'Overloaded', message: 'no memory' } })
  const state = told(noJobs, job(1, 'done', { verdict: 'verified' }), failed)
  expect(state.log.map(({ text }) => text)).toEqual([
    'Job 2, product of 2x2x2 f32: failed: no memory',
    'Job 1, product of 2x2x2 f32: done, verified',
  ])
})

test('log and jobs are bounded', () => {
  const many = Array.from({ length: 3 * LOG_LINES }, (_, id) => job(id, 'done'))
  const state = told(noJobs, ...many)
  expect([state.log.length, state.jobs.length]).toEqual([LOG_LINES, JOBS])
  expect(state.log[0]?.number).toBe(many.length)
})

test('a filter asks for all of its words', () => {
  const state = told(noJobs, job(1, 'done'), job(2, 'failed'))
  expect(filtered(state.log, 'FAILED job', '').map(({ text }) => text)).toEqual(['Job 2, product of 2x2x2 f32: failed'])
  expect(filtered(state.log, '', 'node')).toEqual([])
  expect(filteredJobs(state.jobs, 'done http').map(({ id }) => id)).toEqual([1])
})
