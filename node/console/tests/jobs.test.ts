import { expect, test } from 'vitest'

import { filtered, filteredJobs, type Job, JOBS, LOG_LINES, noJobs, reduceJobs } from '../src/jobs'

function job(id: number, state: string, more: Partial<Job> = {}): Job {
  return {
    id,
    kind: 'product',
    subject: '2x2x2 f32',
    owner: { api: 'http', client: null },
    state,
    progress: { done: 0, total: 4 },
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
