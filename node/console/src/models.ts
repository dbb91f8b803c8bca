// Models: on disk, served, being loaded or downloaded, and where they would be placed. Pure.

import type { LayerRange } from './pool'

export interface ServedModel {
  name: string
  digest: string | null
  state: string
  why: string | null
  running: number
  waiting: number
  model: {
    architecture: string
    layers: number
    context: number
    vocabulary: number
    memory_bytes: number
    file_bytes: number
    session_bytes: number
  } | null
}

export interface DiskModel {
  name: string
  size_bytes: number
  title?: string
  architecture?: string
  parameters?: number
  quantisation?: string
  context?: number
  problem?: string
}

export interface KnownModel {
  name: string
  size_bytes: number
  licence: string
}

export interface Chain {
  stages: { peer: string; name: string; layers: LayerRange }[]
  decode_tokens_per_s: number
  prompt_tokens_per_s: number
}

export interface Plan {
  model: string
  layers: number
  weight_bytes: number
  session_bytes: number
  best: Chain | null
  reason: string
  alternatives: Chain[]
  current: Chain | null
  epoch: number
  ready: boolean
}

export interface Download {
  model: string
  phase: string
  done_bytes: number
  total_bytes: number
  /** `running`, `done`, or why it ended: the same request goes on from there. */
  state: string
}

/** Something that was asked of a model and is not answered yet, or failed. */
export interface Asked {
  what: 'load' | 'drop'
  error: string | null
}

export interface ModelsState {
  served: ServedModel[]
  disk: DiskModel[]
  known: KnownModel[]
  plans: Record<string, Plan | { error: string }>
  downloads: Download[]
  asked: Record<string, Asked>
}

export const noModels: ModelsState = { served: [], disk: [], known: [], plans: {}, downloads: [], asked: {} }

export type ModelsAction =
  | { type: 'models/served'; models: ServedModel[] }
  | { type: 'models/disk'; disk: DiskModel[]; known: KnownModel[] }
  | { type: 'models/plan'; model: string; plan: Plan | { error: string } | null }
  | { type: 'models/download'; download: Download }
  | { type: 'models/forget'; model: string }
  | { type: 'models/asked'; model: string; asked: Asked | null }

export function reduceModels(state: ModelsState, action: ModelsAction): ModelsState {
  switch (action.type) {
    case 'models/served':
      return { ...state, served: action.models }
    case 'models/disk':
      return { ...state, disk: action.disk, known: action.known }
    case 'models/plan': {
      const { [action.model]: _, ...others } = state.plans
      return { ...state, plans: action.plan ? { ...others, [action.model]: action.plan } : others }
    }
    case 'models/download': {
      const at = state.downloads.findIndex(({ model }) => model === action.download.model)
      const downloads = at < 0 ? [action.download, ...state.downloads] : state.downloads.with(at, action.download)
      return { ...state, downloads }
    }
    case 'models/forget':
      return { ...state, downloads: state.downloads.filter(({ model }) => model !== action.model) }
    case 'models/asked': {
      const { [action.model]: _, ...others } = state.asked
      return { ...state, asked: action.asked ? { ...others, [action.model]: action.asked } : others }
    }
  }
}

/** The model that a question goes to: the chosen one if it is served, one that is ready otherwise; empty if there is none. */
export function modelToAsk(chosen: string, served: ServedModel[], names: string[]): string {
  if (names.includes(chosen)) return chosen
  return served.find(({ state }) => state === 'ready')?.name ?? names[0] ?? ''
}

/** The names of the models that somebody serves, this node's included. */
export function askable(served: ServedModel[], pool: string[]): string[] {
  const here = served.filter(({ state }) => state !== 'dropped').map(({ name }) => name)
  return [...new Set([...here, ...pool])].sort()
}

/** The models that can be loaded: on disk or known by a short name, and not served. */
export function loadable(state: ModelsState): DiskModel[] {
  const served = new Set(state.served.filter(({ state }) => state !== 'dropped').map(({ name }) => name))
  return state.disk.filter(({ name }) => !served.has(name))
}

/** The known models that are not on disk. */
export function fetchable(state: ModelsState): KnownModel[] {
  const disk = new Set(state.disk.map(({ name }) => name))
  return state.known.filter(({ name }) => !disk.has(name))
}
