// Conversations and the answer that is being written. Pure; what is streamed becomes actions elsewhere.

import type { LayerRange } from './pool'

export interface Token {
  text: string
  /** Milliseconds since the request, when it arrived. */
  ms: number
  /** Probability that the model gave it; null where the node did not say. */
  p: number | null
}

export interface Outcome {
  verdict: string
  stages: { peer: string; layers: LayerRange }[]
  failovers: number
  receipts: string[]
}

export interface Timings {
  queued_s: number
  prompt_s: number
  prompt_tokens_per_s: number
  answer_s: number
  answer_tokens_per_s: number
}

export interface Turn {
  role: 'user' | 'assistant'
  text: string
  reasoning?: string
  tokens?: Token[]
  model?: string
  outcome?: Outcome
  timings?: Timings
  usage?: { prompt_tokens: number; completion_tokens: number }
  /** Why the answer is not whole. */
  stopped?: string
  /** Whether it had as many tokens as it may have. */
  cut?: boolean
}

export interface Conversation {
  id: string
  title: string
  model: string
  turns: Turn[]
  changed_ms: number
}

/** How far the reading of a prompt is. */
export interface Prefill {
  /** Tokens that are computed before the next one of the answer. */
  tokens: number
  /** How many of them are computed. */
  computed: number
  /** Milliseconds of the page's clock when the node said that. */
  ms: number
  /** What it said first. */
  first: { computed: number; ms: number }
}

export interface ChatState {
  /** The latest changed first. */
  conversations: Conversation[]
  /** The model for a new conversation. */
  model: string
  /** The conversation whose answer is being written. */
  writing: string | null
  prefill: Prefill | null
  system: string
  temperature: number | null
  max_tokens: number | null
}

/**
 * Tokens of an answer, at most, unless the settings say otherwise: some pages of text. A small model may never end an answer by
 * itself.
 */
export const LONGEST = 1024

/** Conversations that the browser keeps; the oldest goes. */
export const CONVERSATIONS = 50

/** Characters of a conversation's title. */
const TITLE = 48

export const noChat: ChatState = {
  conversations: [],
  model: '',
  writing: null,
  prefill: null,
  system: '',
  temperature: null,
  max_tokens: null,
}

/** A piece of an answer. */
export interface Piece {
  text: string
  reasoning: string
  tokens: Token[]
}

export type ChatAction =
  | { type: 'chat/restored'; kept: Kept }
  | { type: 'chat/model'; id: string | null; model: string }
  | { type: 'chat/settings'; system?: string; temperature?: number | null; max_tokens?: number | null }
  | { type: 'chat/ask'; id: string; text: string; model: string; now: number }
  | { type: 'chat/regenerate'; id: string; now: number }
  | { type: 'chat/prefill'; tokens: number; computed: number; ms: number }
  | { type: 'chat/piece'; id: string; piece: Piece }
  | { type: 'chat/done'; id: string; outcome?: Outcome; timings?: Timings; usage?: Turn['usage']; stopped?: string; cut?: boolean }
  | { type: 'chat/delete'; id: string }

export function reduceChat(state: ChatState, action: ChatAction): ChatState {
  switch (action.type) {
    case 'chat/restored':
      return { ...state, ...restored(action.kept) }
    case 'chat/model': {
      const changed = change(state, action.id, (conversation) => ({ ...conversation, model: action.model }))
      return { ...changed, model: action.model }
    }
    case 'chat/settings': {
      const { type: _, ...settings } = action
      return { ...state, ...settings }
    }
    case 'chat/ask': {
      const asked: Turn[] = [
        { role: 'user', text: action.text },
        { role: 'assistant', text: '', tokens: [], model: action.model },
      ]
      const before = state.conversations.find(({ id }) => id === action.id)
      const conversation: Conversation = {
        id: action.id,
        title: before?.title ?? titleOf(action.text),
        model: action.model,
        turns: [...(before?.turns ?? []), ...asked],
        changed_ms: action.now,
      }
      const others = state.conversations.filter(({ id }) => id !== action.id)
      const conversations = [conversation, ...others].slice(0, CONVERSATIONS)
      return { ...state, conversations, writing: action.id, prefill: null }
    }
    case 'chat/regenerate': {
      const cut = change(state, action.id, (conversation) => {
        const turns = conversation.turns.at(-1)?.role === 'assistant' ? conversation.turns.slice(0, -1) : conversation.turns
        const answer: Turn = { role: 'assistant', text: '', tokens: [], model: conversation.model }
        return { ...conversation, turns: [...turns, answer], changed_ms: action.now }
      })
      return { ...cut, writing: action.id, prefill: null }
    }
    case 'chat/prefill': {
      const { tokens, computed, ms } = action
      return { ...state, prefill: { tokens, computed, ms, first: state.prefill?.first ?? { computed, ms } } }
    }
    case 'chat/piece': {
      const { text, reasoning, tokens } = action.piece
      const added = answered(state, action.id, (turn) => ({
        ...turn,
        text: turn.text + text,
        ...(reasoning && { reasoning: (turn.reasoning ?? '') + reasoning }),
        tokens: [...(turn.tokens ?? []), ...tokens],
      }))
      return { ...added, prefill: null }
    }
    case 'chat/done': {
      const { outcome, timings, usage, stopped, cut } = action
      const ended = answered(state, action.id, (turn) => ({
        ...turn,
        ...(outcome && { outcome }),
        ...(timings && { timings }),
        ...(usage && { usage }),
        ...(stopped && { stopped }),
        ...(cut && { cut }),
      }))
      return { ...ended, writing: null, prefill: null }
    }
    case 'chat/delete':
      return { ...state, conversations: state.conversations.filter(({ id }) => id !== action.id) }
  }
}

function change(state: ChatState, id: string | null, to: (conversation: Conversation) => Conversation): ChatState {
  const at = state.conversations.findIndex((conversation) => conversation.id === id)
  const conversation = state.conversations[at]
  return conversation ? { ...state, conversations: state.conversations.with(at, to(conversation)) } : state
}

/** Changes the answer at the end of a conversation. */
function answered(state: ChatState, id: string, to: (turn: Turn) => Turn): ChatState {
  return change(state, id, (conversation) => {
    const last = conversation.turns.at(-1)
    if (last?.role !== 'assistant') return conversation
    return { ...conversation, turns: conversation.turns.with(-1, to(last)) }
  })
}

function titleOf(text: string): string {
  const line = text.trim().split('\n')[0] ?? ''
  return line.length > TITLE ? `${line.slice(0, TITLE - 1)}…` : line
}

/** What the browser keeps. */
export type Kept = Pick<ChatState, 'conversations' | 'model' | 'system' | 'temperature' | 'max_tokens'>

export function kept({ conversations, model, system, temperature, max_tokens }: ChatState): Kept {
  return { conversations, model, system, temperature, max_tokens }
}

/** What was kept, as far as it is what this version writes. */
function restored(kept: Partial<Kept>): Partial<ChatState> {
  const isTurn = (turn: Turn) => typeof turn?.text === 'string' && (turn.role === 'user' || turn.role === 'assistant')
  const isWhole = (one: Conversation) =>
    typeof one?.id === 'string' && typeof one.title === 'string' && Array.isArray(one.turns) && one.turns.every(isTurn)
  return {
    conversations: Array.isArray(kept.conversations) ? kept.conversations.filter(isWhole).slice(0, CONVERSATIONS) : [],
    model: typeof kept.model === 'string' ? kept.model : '',
    system: typeof kept.system === 'string' ? kept.system : '',
    temperature: typeof kept.temperature === 'number' ? kept.temperature : null,
    max_tokens: typeof kept.max_tokens === 'number' ? kept.max_tokens : null,
  }
}

/** The messages of a request: everything but the answer that is to be written. */
export function messages(conversation: Conversation, system: string): { role: string; content: string }[] {
  const turns = conversation.turns.slice(0, conversation.turns.at(-1)?.role === 'assistant' ? -1 : undefined)
  const said = turns.map(({ role, text }) => ({ role, content: text }))
  return system.trim() ? [{ role: 'system', content: system.trim() }, ...said] : said
}

/** What a chunk of OpenAI's stream says. `ms`: when it arrived, since the request. */
export function pieceOf(chunk: Chunk, ms: number): Piece {
  const choice = chunk.choices?.[0]
  const tokens = choice?.logprobs?.content?.map(({ token, logprob }) => ({ text: token, ms, p: Math.exp(logprob) })) ?? []
  const text = choice?.delta?.content ?? ''
  // A node that answers without log-probabilities still shows when text came.
  const timed = tokens.length === 0 && text ? [{ text, ms, p: null }] : tokens
  return { text, reasoning: choice?.delta?.reasoning_content ?? '', tokens: timed }
}

export interface Chunk {
  choices?: {
    delta?: { content?: string | null; reasoning_content?: string }
    logprobs?: { content?: { token: string; logprob: number }[] | null } | null
    finish_reason?: string | null
  }[]
  usage?: { prompt_tokens: number; completion_tokens: number } | null
  pangea?: Outcome
  prefill?: { tokens: number; computed: number }
  timings?: Timings
  error?: { message: string }
}

/** Seconds until a prompt is read, at the pace so far; null before there is one. */
export function left({ tokens, computed, ms, first }: Prefill): number | null {
  const [done, spent] = [computed - first.computed, ms - first.ms]
  return done > 0 && spent > 0 ? ((tokens - computed) * spent) / done / 1000 : null
}

/** How sure the model was, in words and as one of five steps from 0. */
export function confidence(p: number | null): { step: number; text: string } | null {
  if (p === null) return null
  const step = p >= 0.9 ? 4 : p >= 0.7 ? 3 : p >= 0.4 ? 2 : p >= 0.15 ? 1 : 0
  return { step, text: `${Math.round(p * 100)} %` }
}

export interface Pace {
  first_ms: number
  tokens_per_s: number
  /** Geometric mean of the tokens' probabilities; null without any. */
  confidence: number | null
}

/** How fast an answer came and how sure the model was. */
export function pace(tokens: Token[]): Pace | null {
  const [first, last] = [tokens[0], tokens.at(-1)]
  if (!first || !last) return null
  const spent = (last.ms - first.ms) / 1000
  const known = tokens.filter((token) => token.p !== null && token.p > 0)
  const logs = known.reduce((sum, token) => sum + Math.log(token.p as number), 0)
  return {
    first_ms: first.ms,
    tokens_per_s: spent > 0 ? (tokens.length - 1) / spent : 0,
    confidence: known.length > 0 ? Math.exp(logs / known.length) : null,
  }
}
