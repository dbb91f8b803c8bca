// Everything that asks the node: polls, streams and commands. Results become actions; nothing is decided here.

import { ApiError, ask, events, json, key, messageOf, onRefused } from './api'
import { type Chunk, type Kept, LONGEST, kept, messages, pieceOf } from './chat'
import { verify } from './ed25519'
import { isLive, type Job } from './jobs'
import { reading } from './metrics'
import type { DiskModel, Download, KnownModel, Plan, ServedModel } from './models'
import type { Pool } from './pool'
import { FrameReader, type ProductRequest } from './products'
import { check, type Receipt } from './receipt'
import { shared } from './same'
import { type Action, type Invitation, type Member, type Members, type ReceiptLine, reduce, start, type Status } from './state'
import { Store } from './store'

export const store = new Store(reduce, start)

const dispatch = (action: Action) => store.dispatch(action)

const CHATS = 'pangea.chats'

/** Milliseconds between two polls: the pool is looked at as often as its nodes publish. */
const POLL = 1000
const SLOW_POLL = 2000

/** Longest wait before the stream of events is opened again. */
const RECONNECT_MAX = 15_000

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))

/** Starts the console. */
export function begin(): void {
  onRefused(() => {
    const refused = key.get() ? 'This key is not accepted.' : undefined
    key.forget()
    dispatch({ type: 'phase', phase: 'login', now: Date.now(), ...(refused && { refused }) })
  })
  const route = () => dispatch({ type: 'route', route: routeOf(location.hash) })
  addEventListener('hashchange', route)
  route()
  restore()
  store.subscribe(keep)
  store.subscribe(watchDownloads)
  poll(POLL, status, true)
  poll(POLL, async () => {
    const pool = shared(store.state.pool.pool, await json<Pool>('/api/pangea/pool'))
    dispatch({ type: 'pool', pool, at: Date.now() })
  })
  poll(SLOW_POLL, metrics)
  poll(SLOW_POLL, served)
  poll(SLOW_POLL, members)
  void follow()
}

/** `#/activity/receipts/x` as its parts. */
export function routeOf(hash: string): string[] {
  const parts = hash.replace(/^#\/?/, '').split('/').filter(Boolean).map(decodeURIComponent)
  return parts.length > 0 ? parts : ['topology']
}

export function logIn(secret: string): void {
  key.set(secret)
  dispatch({ type: 'phase', phase: 'starting', now: Date.now() })
}

export function logOut(): void {
  key.forget()
  dispatch({ type: 'phase', phase: 'login', now: Date.now() })
}

/** Runs `once` again and again, `ms` after it ended, while the page is seen and the node wants no key. */
function poll(ms: number, once: () => Promise<void>, isVital = false): void {
  const run = async () => {
    for (;;) {
      const phase = store.state.phase
      const asks = phase === 'ready' || (isVital && phase !== 'login')
      if (asks && !document.hidden) {
        try {
          await once()
        } catch (error) {
          if (isVital && !(error instanceof ApiError && error.status > 0)) {
            dispatch({ type: 'phase', phase: 'lost', now: Date.now() })
          }
        }
      }
      // What has just become possible is done at once.
      await sleep(phase === 'starting' && !asks ? 50 : ms)
    }
  }
  void run()
}

async function status(): Promise<void> {
  const status = await json<Status>('/api/pangea/status')
  // Parts of this page that are still to come are those of the new version.
  if (store.state.status && store.state.status.version !== status.version) location.reload()
  dispatch({ type: 'status', status })
}

async function metrics(): Promise<void> {
  const text = await (await ask('/metrics')).text()
  dispatch({ type: 'metrics', reading: reading(text, Date.now()) })
}

async function served(): Promise<void> {
  const { models } = await json<{ models: ServedModel[] }>('/api/pangea/models')
  dispatch({ type: 'models/served', models: shared(store.state.models.served, models) })
}

async function members(): Promise<void> {
  try {
    const members = shared(store.state.membership.members, await json<Members>('/api/pangea/members'))
    dispatch({ type: 'members', members })
  } catch (error) {
    // Only the owner sees who waits.
    if (error instanceof ApiError && (error.status === 403 || error.status === 503)) dispatch({ type: 'members', members: null })
    else throw error
  }
}

/** Follows the node's events for ever; after a gap the list of jobs is read anew. */
async function follow(): Promise<void> {
  let wait = 500
  for (;;) {
    if (store.state.phase !== 'ready') {
      await sleep(100)
      continue
    }
    try {
      const stream = events('/api/pangea/events')
      const first = stream.next()
      // Awaited below; where the list fails before that, nobody else waits for it.
      first.catch(() => {})
      dispatch({ type: 'jobs', jobs: await json<Job[]>('/api/pangea/jobs') })
      dispatch({ type: 'live', live: true })
      wait = 500
      for (let next = await first; !next.done; next = await stream.next()) {
        const { event, data } = next.value
        if (event === 'lagged') dispatch({ type: 'jobs', jobs: await json<Job[]>('/api/pangea/jobs') })
        else dispatch({ type: 'job', event, job: JSON.parse(data), unix_ms: Date.now() })
      }
    } catch {
      // Opened again below.
    }
    dispatch({ type: 'live', live: false })
    await sleep(wait)
    wait = Math.min(2 * wait, RECONNECT_MAX)
  }
}

// ---- chat ----------------------------------------------------------------------------------------------------------

function restore(): void {
  try {
    const text = localStorage.getItem(CHATS)
    if (text) dispatch({ type: 'chat/restored', kept: JSON.parse(text) as Kept })
  } catch {
    // What cannot be read is no conversation.
  }
}

let written = store.state.chat
let keeping: ReturnType<typeof setTimeout> | undefined

/** Writes the conversations, half a second after they changed. */
function keep(): void {
  if (store.state.chat === written || keeping !== undefined) return
  keeping = setTimeout(() => {
    keeping = undefined
    written = store.state.chat
    try {
      localStorage.setItem(CHATS, JSON.stringify(kept(written)))
    } catch {
      const lines = [{ kind: 'console' as const, text: 'The browser has no room for more conversations; delete some' }]
      dispatch({ type: 'happened', lines, unix_ms: Date.now() })
    }
  }, 500)
}

let writing: AbortController | null = null

export function stop(): void {
  writing?.abort()
}

/** Asks in a conversation, or in a new one. */
export async function say(conversation: string | null, text: string, model: string): Promise<void> {
  const id = conversation ?? crypto.getRandomValues(new Uint32Array(2)).join('-')
  dispatch({ type: 'chat/ask', id, text, model, now: Date.now() })
  store.flush()
  location.hash = `#/chat/${id}`
  await answer(id)
}

export async function regenerate(id: string): Promise<void> {
  dispatch({ type: 'chat/regenerate', id, now: Date.now() })
  store.flush()
  await answer(id)
}

async function answer(id: string): Promise<void> {
  const { conversations, system, temperature, max_tokens } = store.state.chat
  const conversation = conversations.find((one) => one.id === id)
  if (!conversation) return
  writing = new AbortController()
  const { signal } = writing
  const since = performance.now()
  try {
    const body = {
      model: conversation.model,
      messages: messages(conversation, system),
      stream: true,
      stream_options: { include_usage: true, include_prefill: true },
      logprobs: true,
      ...(temperature !== null && { temperature }),
      max_completion_tokens: max_tokens ?? LONGEST,
    }
    let usage: Chunk['usage'] = null
    let last: Chunk = {}
    let cut = false
    for await (const { data } of events('/v1/chat/completions', { body, signal })) {
      if (data === '[DONE]') break
      const chunk: Chunk = JSON.parse(data)
      if (chunk.error) throw new Error(chunk.error.message)
      const ms = performance.now() - since
      if (chunk.prefill) dispatch({ type: 'chat/prefill', ...chunk.prefill, ms })
      const piece = pieceOf(chunk, ms)
      if (piece.text || piece.reasoning || piece.tokens.length > 0) dispatch({ type: 'chat/piece', id, piece })
      cut ||= chunk.choices?.[0]?.finish_reason === 'length'
      usage = chunk.usage ?? usage
      if (chunk.pangea?.verdict) last = chunk
    }
    dispatch({
      type: 'chat/done',
      id,
      ...(last.pangea && { outcome: last.pangea }),
      ...(last.timings && { timings: last.timings }),
      ...(usage && { usage }),
      cut,
    })
    if (last.timings) await compared(conversation.model, last.timings.answer_tokens_per_s)
  } catch (error) {
    dispatch({ type: 'chat/done', id, stopped: signal.aborted ? 'stopped' : messageOf(error) })
  } finally {
    writing = null
  }
}

/** Notes how fast the node says that the model is beside how fast it was. */
async function compared(model: string, measured: number): Promise<void> {
  try {
    const { current } = await json<Plan>(`/api/pangea/plan/${encodeURIComponent(model)}`)
    const predicted = current?.decode_tokens_per_s ?? 0
    dispatch({ type: 'prediction', prediction: { unix_ms: Date.now(), what: model, kind: 'answer', predicted, measured } })
  } catch {
    // A model that another node serves alone has no plan here.
  }
}

// ---- who belongs to the pool ---------------------------------------------------------------------------------------

async function member(what: string, node: Member, more: object = {}): Promise<void> {
  dispatch({ type: 'membership', change: { busy: node.peer, error: null } })
  try {
    await json(`/api/pangea/members/${what}`, { body: { node: node.peer, ...more } })
    await members()
    dispatch({ type: 'membership', change: { busy: null } })
  } catch (error) {
    dispatch({ type: 'membership', change: { busy: null, error: messageOf(error) } })
  }
}

export const compare = (node: Member) => member('compare', node)
export const accept = (node: Member) => member('accept', node, { digits: node.digits })
export const revoke = (node: Member) => member('revoke', node)

export async function invite(pin: boolean): Promise<void> {
  dispatch({ type: 'membership', change: { busy: 'invitation', error: null } })
  try {
    const invitation = await json<Invitation>('/api/pangea/invitations', { body: { pin } })
    dispatch({ type: 'membership', change: { busy: null, invitation } })
  } catch (error) {
    dispatch({ type: 'membership', change: { busy: null, error: messageOf(error) } })
  }
}

export function hideInvitation(): void {
  dispatch({ type: 'membership', change: { invitation: null } })
}

// ---- models --------------------------------------------------------------------------------------------------------

export async function readDisk(): Promise<void> {
  const { models, known } = await json<{ models: DiskModel[]; known: KnownModel[] }>('/api/pangea/models/disk')
  dispatch({ type: 'models/disk', disk: models, known })
}

export async function plan(model: string): Promise<void> {
  try {
    const found = await json<Plan>(`/api/pangea/plan/${encodeURIComponent(model)}`)
    dispatch({ type: 'models/plan', model, plan: found })
  } catch (error) {
    dispatch({ type: 'models/plan', model, plan: { error: messageOf(error) } })
  }
}

export function hidePlan(model: string): void {
  dispatch({ type: 'models/plan', model, plan: null })
}

export async function change(what: 'load' | 'drop', model: string): Promise<void> {
  dispatch({ type: 'models/asked', model, asked: { what, error: null } })
  // Where it was to be placed is no longer true.
  hidePlan(model)
  try {
    await json(`/api/pangea/models/${what}`, { body: { model } })
    dispatch({ type: 'models/asked', model, asked: null })
  } catch (error) {
    // A model that takes longer than a request goes on loading.
    const goesOn = error instanceof ApiError && error.status === 503 && error.retryAfter !== null && what === 'load'
    dispatch({ type: 'models/asked', model, asked: goesOn ? null : { what, error: messageOf(error) } })
  }
  await Promise.allSettled([served(), readDisk()])
}

/** Models whose downloads this page watches, and the jobs that it has watched. */
const watched = new Set<string>()
const seen = new Set<number>()
let looked = store.state.jobs.jobs

/** Watches the downloads that the node runs, whoever asked for them. */
function watchDownloads(): void {
  if (store.state.jobs.jobs === looked) return
  looked = store.state.jobs.jobs
  for (const job of looked) {
    if (job.kind !== 'download' || !isLive(job) || seen.has(job.id)) continue
    seen.add(job.id)
    void pull(job.subject, false)
  }
}

/**
 * Downloads a model, or watches its download where it runs; the node goes on without this page. Called again, goes on where an
 * earlier download ended. `start`: whether to start it.
 */
export async function pull(model: string, start = true): Promise<void> {
  if (watched.has(model)) return
  watched.add(model)
  let download: Download = { model, phase: 'asking', done_bytes: 0, total_bytes: 0, state: 'running' }
  const tell = (change: Partial<Download>) => {
    download = { ...download, ...change }
    dispatch({ type: 'models/download', download })
  }
  tell({})
  try {
    for await (const { event, data } of events('/api/pangea/models/pull', { body: { model, start } })) {
      const said = JSON.parse(data)
      if (event === 'progress') tell(said)
      else if (event === 'error') tell({ state: said.error.kind === 'Cancelled' ? 'paused' : said.error.message })
      else tell({ state: 'done' })
    }
    if (download.state === 'running') tell({ state: 'the connection ended' })
  } catch (error) {
    // A download that is only to be watched may have ended just now, or belong to the owner only.
    if (error instanceof ApiError && error.status > 0 && !start) forget(model)
    else tell({ state: messageOf(error) })
  }
  watched.delete(model)
  await readDisk().catch(() => {})
}

/** Stops a download; its end is told to all who watch it. */
export async function pause(model: string): Promise<void> {
  await json('/api/pangea/models/pull/cancel', { body: { model } }).catch(() => {})
}

export function forget(model: string): void {
  dispatch({ type: 'models/forget', model })
}

// ---- products ------------------------------------------------------------------------------------------------------

let multiplying: AbortController | null = null

export function cancelProduct(): void {
  multiplying?.abort()
}

/** Multiplies two files, or matrices of these sizes. */
export async function multiply(operands: ProductRequest | [File, File]): Promise<void> {
  const before = store.state.product.download
  if (before) URL.revokeObjectURL(before.url)
  dispatch({ type: 'product/start' })
  multiplying = new AbortController()
  const { signal } = multiplying
  try {
    const sends = Array.isArray(operands) ? { bytes: new Blob(operands) } : { body: operands }
    const { body } = await ask('/api/pangea/products', { ...sends, signal })
    const reader = body?.getReader()
    const frames = new FrameReader()
    const parts: Uint8Array<ArrayBuffer>[] = []
    let [received, name] = [0, 'product.npy']
    for (let next = await reader?.read(); next && !next.done; next = await reader?.read()) {
      const { frames: found, product } = frames.push(next.value)
      for (const frame of found) {
        if (frame.event === 'product') name = frame.name
        dispatch({ type: 'product/frame', frame })
        if (frame.event === 'done') {
          const { shape, dtype, seconds, predicted_seconds } = frame.report
          const what = `${shape.join('x')} ${dtype}`
          const prediction = { unix_ms: Date.now(), what, kind: 'product', predicted: predicted_seconds, measured: seconds } as const
          dispatch({ type: 'prediction', prediction })
        }
      }
      if (product) {
        parts.push(product as Uint8Array<ArrayBuffer>)
        received += product.length
        dispatch({ type: 'product/received', bytes: received })
      }
    }
    store.flush()
    const { phase, total_bytes } = store.state.product
    if (phase === 'failed') return
    if (received !== total_bytes || received === 0) throw new Error('the answer ended too early')
    const url = URL.createObjectURL(new Blob(parts, { type: 'application/octet-stream' }))
    dispatch({ type: 'product/whole', download: { url, name, bytes: received } })
  } catch (error) {
    dispatch({ type: 'product/failed', error: signal.aborted ? 'cancelled' : messageOf(error) })
  } finally {
    multiplying = null
  }
}

// ---- receipts ------------------------------------------------------------------------------------------------------

export async function readReceipts(): Promise<void> {
  try {
    const { receipts } = await json<{ receipts: ReceiptLine[] }>('/api/pangea/receipts')
    dispatch({ type: 'receipts', change: { list: receipts, error: null } })
  } catch (error) {
    dispatch({ type: 'receipts', change: { error: messageOf(error) } })
  }
}

/** Shows a receipt and checks its signatures here. */
export async function showReceipt(id: string): Promise<void> {
  dispatch({ type: 'receipts', change: { shown: null, check: null, audit: 'idle', wrong: [], error: null } })
  try {
    const receipt = await json<Receipt>(`/api/pangea/receipts/${encodeURIComponent(id)}`)
    dispatch({ type: 'receipts', change: { shown: receipt } })
    dispatch({ type: 'receipts', change: { check: await check(receipt, verify) } })
  } catch (error) {
    dispatch({ type: 'receipts', change: { error: messageOf(error) } })
  }
}

/** Has the node compute an answer again. */
export async function audit(id: string): Promise<void> {
  dispatch({ type: 'receipts', change: { audit: 'running' } })
  try {
    const { receipt, wrong } = await json<{ receipt: Receipt; wrong: string[] }>(
      `/api/pangea/receipts/${encodeURIComponent(id)}/audit`,
      { body: {} },
    )
    dispatch({ type: 'receipts', change: { shown: receipt, audit: 'done', wrong, check: await check(receipt, verify) } })
    await readReceipts()
  } catch (error) {
    dispatch({ type: 'receipts', change: { audit: messageOf(error) } })
  }
}
