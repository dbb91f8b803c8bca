// The whole state of the console, and the one reducer. Pure.

import { type ChatAction, type ChatState, noChat, reduceChat } from './chat'
import { type JobsAction, type JobsState, noJobs, reduceJobs } from './jobs'
import { type MetricsAction, type MetricsState, noMetrics, reduceMetrics } from './metrics'
import { type ModelsAction, type ModelsState, noModels, reduceModels } from './models'
import { changes, noPool, type PoolAction, type PoolState, reducePool } from './pool'
import { type Prediction, type PredictionAction, reducePredictions } from './predictions'
import { noProduct, type ProductAction, type ProductState, reduceProduct } from './products'
import type { Receipt, ReceiptCheck } from './receipt'

export interface Status {
  peer: string
  name: string
  version: string
  uptime_s: number
  pool_key: boolean
  threads: number
  gflops: number
  memory_used_bytes: number
  memory_limit_bytes: number
  memory: { purpose: string; bytes: number }[]
  peers: number
  jobs_running: number
  api: string
  master: string
}

export interface Member {
  peer: string
  name: string
  state: string
  role: string
  admitted_by: string
  expires: number
  digits: string
}

export interface Members {
  pool: string
  open: boolean
  holds_key: boolean
  members: Member[]
}

export interface Invitation {
  token: string
  qr: string[]
  pin: string | null
  pin_life_s: number | null
  expires: number
}

export interface Membership {
  members: Members | null
  invitation: Invitation | null
  /** Peer id of a node that is being asked or accepted. */
  busy: string | null
  error: string | null
}

export interface ReceiptLine {
  id: string
  unix_ms: number
  model: string
  prompt_tokens: number
  answer_tokens: number
  stages: number
  failovers: number
  verdict: string
}

export interface ReceiptsState {
  list: ReceiptLine[]
  shown: Receipt | null
  check: ReceiptCheck | null
  /** `idle`, `running`, `done`, or why it failed. */
  audit: string
  wrong: string[]
  error: string | null
}

export interface State {
  /** `starting`, `login` (the node wants a key), `ready` or `lost` (it does not answer). */
  phase: string
  /** Why the last key was refused. */
  refused: string | null
  route: string[]
  status: Status | null
  pool: PoolState
  membership: Membership
  jobs: JobsState
  receipts: ReceiptsState
  chat: ChatState
  models: ModelsState
  product: ProductState
  metrics: MetricsState
  predictions: Prediction[]
}

export type Action =
  | { type: 'route'; route: string[] }
  | { type: 'phase'; phase: string; refused?: string; now: number }
  | { type: 'status'; status: Status }
  | { type: 'members'; members: Members | null }
  | { type: 'membership'; change: Partial<Membership> }
  | { type: 'receipts'; change: Partial<ReceiptsState> }
  | PoolAction
  | JobsAction
  | ChatAction
  | ModelsAction
  | ProductAction
  | MetricsAction
  | PredictionAction

export const start: State = {
  phase: 'starting',
  refused: null,
  route: ['topology'],
  status: null,
  pool: noPool,
  membership: { members: null, invitation: null, busy: null, error: null },
  jobs: noJobs,
  receipts: { list: [], shown: null, check: null, audit: 'idle', wrong: [], error: null },
  chat: noChat,
  models: noModels,
  product: noProduct,
  metrics: noMetrics,
  predictions: [],
}

export function reduce(state: State, action: Action): State {
  switch (action.type) {
    case 'route':
      return { ...state, route: action.route }
    case 'phase': {
      const said = action.phase === 'lost' ? lost(state, action.now) : state
      return { ...said, phase: action.phase, refused: action.refused ?? null }
    }
    case 'status':
      return { ...state, status: action.status, phase: 'ready', refused: null }
    case 'members':
      return { ...state, membership: { ...state.membership, members: action.members } }
    case 'membership':
      return { ...state, membership: { ...state.membership, ...action.change } }
    case 'receipts':
      return { ...state, receipts: { ...state.receipts, ...action.change } }
    case 'pool': {
      const lines = changes(state.pool.pool, action.pool)
      const jobs = reduceJobs(state.jobs, { type: 'happened', lines, unix_ms: action.at })
      return { ...state, pool: reducePool(state.pool, action), jobs }
    }
    case 'job':
    case 'jobs':
    case 'live':
    case 'happened':
      return { ...state, jobs: reduceJobs(state.jobs, action) }
    case 'metrics':
      return { ...state, metrics: reduceMetrics(state.metrics, action) }
    case 'prediction':
      return { ...state, predictions: reducePredictions(state.predictions, action) }
    default:
      return reduceParts(state, action)
  }
}

function reduceParts(state: State, action: ChatAction | ModelsAction | ProductAction): State {
  if (action.type.startsWith('chat/')) return { ...state, chat: reduceChat(state.chat, action as ChatAction) }
  if (action.type.startsWith('models/')) return { ...state, models: reduceModels(state.models, action as ModelsAction) }
  return { ...state, product: reduceProduct(state.product, action as ProductAction) }
}

function lost(state: State, now: number): State {
  if (state.phase === 'lost') return state
  const lines = [{ kind: 'console' as const, text: 'The node does not answer; the console goes on asking' }]
  return { ...state, jobs: reduceJobs(state.jobs, { type: 'happened', lines, unix_ms: now }) }
}
