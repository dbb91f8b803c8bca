// Conversations: the model and the nodes that serve it, the answer as it is written, and what is known of it afterwards.

import { useEffect, useRef, useState as useLocal } from 'preact/hooks'

import { confidence, type Conversation, left, LONGEST, pace, type Prefill, type Token, type Turn } from './chat'
import { regenerate, say, stop, store } from './effects'
import { isLive } from './jobs'
import { Markdown } from './markdown'
import { askable, modelToAsk } from './models'
import { Badge, Bar, Empty, Failover } from './parts'
import { labelOf, labels, path, poolModels } from './pool'
import { count, digits, layers, percent, seconds } from './units'
import { useState } from './use'

export function Chat() {
  const chat = useState((state) => state.chat)
  const route = useState((state) => state.route)
  const served = useState((state) => state.models.served)
  const pool = useState((state) => state.pool.pool)
  // The address says which conversation is shown.
  const conversation = chat.conversations.find(({ id }) => id === route[1]) ?? null
  const names = askable(served, poolModels(pool))
  const model = modelToAsk(conversation?.model || chat.model, served, names)
  const isWriting = chat.writing !== null
  return (
    <div class="chat">
      <Conversations list={chat.conversations} current={conversation?.id ?? null} writing={chat.writing} />
      <section class="talk" aria-label="Conversation">
        <div class="chat-head">
          <label class="inline">
            Model{' '}
            <select value={model} disabled={isWriting} onChange={(event) => store.dispatch({ type: 'chat/model', id: conversation?.id ?? null, model: event.currentTarget.value })}>
              {names.length === 0 && <option value="">none is served</option>}
              {names.map((name) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          </label>
          <Servers model={model} />
          <Settings />
        </div>
        <Turns conversation={conversation} writing={chat.writing} prefill={chat.prefill} model={model} />
        <Composer id={conversation?.id ?? null} model={model} writing={isWriting} />
      </section>
    </div>
  )
}

function Conversations({ list, current, writing }: { list: Conversation[]; current: string | null; writing: string | null }) {
  return (
    <nav class="conversations" aria-label="Conversations">
      <a class="button" href="#/chat">
        New conversation
      </a>
      <ul class="plain">
        {list.map(({ id, title }) => (
          <li key={id}>
            <a href={`#/chat/${id}`} aria-current={id === current ? 'true' : undefined}>
              {title || 'untitled'}
            </a>
            <button
              class="quiet"
              aria-label={`Delete ${title}`}
              disabled={id === writing}
              onClick={() => {
                store.dispatch({ type: 'chat/delete', id })
                if (id === current) location.hash = '#/chat'
              }}
            >
              ×
            </button>
          </li>
        ))}
      </ul>
    </nav>
  )
}

/** The nodes of the pool; those that compute the model light up. */
function Servers({ model }: { model: string }) {
  const pool = useState((state) => state.pool.pool)
  if (!pool) return null
  const names = labels(pool.nodes)
  const stages = path(pool, model)
  return (
    <ul class="servers" aria-label="Nodes that serve the model">
      {pool.nodes
        .filter(({ works }) => works)
        .map(({ peer }) => {
          const stage = stages.find((stage) => stage.peer === peer)
          return (
            <li key={peer} class={stage ? 'lit' : ''}>
              {names.get(peer)}
              {stage && <span class="fine"> {layers(stage.layers)}</span>}
            </li>
          )
        })}
    </ul>
  )
}

function Settings() {
  const { system, temperature, max_tokens } = useState((state) => state.chat)
  const number = (text: string) => (text.trim() === '' || !Number.isFinite(Number(text)) ? null : Number(text))
  return (
    <details class="settings">
      <summary>Settings</summary>
      <label>
        System message
        <textarea rows={2} value={system} onInput={(event) => store.dispatch({ type: 'chat/settings', system: event.currentTarget.value })} />
      </label>
      <label>
        Temperature
        <input type="number" min="0" max="2" step="0.1" placeholder="the model's own" value={temperature ?? ''} onInput={(event) => store.dispatch({ type: 'chat/settings', temperature: number(event.currentTarget.value) })} />
      </label>
      <label>
        Longest answer in tokens
        <input type="number" min="1" step="1" placeholder={LONGEST.toLocaleString('en')} value={max_tokens ?? ''} onInput={(event) => store.dispatch({ type: 'chat/settings', max_tokens: number(event.currentTarget.value) })} />
      </label>
    </details>
  )
}

interface TurnsProps {
  conversation: Conversation | null
  writing: string | null
  prefill: Prefill | null
  model: string
}

function Turns({ conversation, writing, prefill, model }: TurnsProps) {
  const list = useRef<HTMLDivElement>(null)
  const isWriting = conversation !== null && conversation.id === writing
  const last = conversation?.turns.at(-1)
  useEffect(() => {
    const box = list.current
    if (!box) return
    // Whoever scrolled up to read stays there.
    const isNear = box.scrollHeight - box.scrollTop - box.clientHeight < 160
    if (isNear || last?.text === '') box.scrollTop = box.scrollHeight
  }, [last?.text, conversation?.turns.length])
  return (
    <div class="turns" ref={list} role="log" aria-label="Messages" aria-busy={isWriting} tabIndex={0}>
      {!conversation && <Beginning model={model} writing={writing !== null} />}
      {conversation?.turns.map((turn, index) => {
        const isLast = index === conversation.turns.length - 1
        return turn.role === 'user' ? (
          <article key={index} class="turn user" aria-label="You">
            <p>{turn.text}</p>
          </article>
        ) : (
          <Answer key={index} turn={turn} isWriting={isWriting && isLast} prefill={isLast ? prefill : null} again={isLast && !writing ? conversation.id : null} />
        )
      })}
    </div>
  )
}

/** Questions that even a small model answers, for those who only want to see it answer. */
const QUESTIONS = ['What is the capital of France?', 'Why is the sky blue?', 'Name three things to see in Rome.']

function Beginning({ model, writing }: { model: string; writing: boolean }) {
  if (!model) {
    return (
      <Empty>
        No model is served yet. <a href="#/models">Load or download one</a>, then ask it here.
      </Empty>
    )
  }
  return (
    <div class="beginning">
      <Empty>Ask something. What you write and the answers stay in this browser.</Empty>
      <p class="buttons">
        {QUESTIONS.map((question) => (
          <button key={question} disabled={writing} onClick={() => void say(null, question, model)}>
            {question}
          </button>
        ))}
      </p>
    </div>
  )
}

interface AnswerProps {
  turn: Turn
  isWriting: boolean
  prefill: Prefill | null
  /** The conversation whose last answer this is. */
  again: string | null
}

function Answer({ turn, isWriting, prefill, again }: AnswerProps) {
  const [detailed, setDetailed] = useLocal(false)
  const pool = useState((state) => state.pool.pool)
  const { outcome, timings, usage } = turn
  const speed = pace(turn.tokens ?? [])
  return (
    <article class="turn assistant" aria-label={`Answer of ${turn.model ?? 'the model'}`}>
      {turn.reasoning && (
        <details>
          <summary>Reasoning</summary>
          <Markdown text={turn.reasoning} />
        </details>
      )}
      {isWriting && !turn.text && <Reading prefill={prefill} />}
      {isWriting && <Moved model={turn.model ?? ''} />}
      {detailed && turn.tokens ? <TokenList tokens={turn.tokens} /> : <Markdown text={turn.text} />}
      {turn.stopped && <p class="failure">{turn.stopped === 'stopped' ? `Stopped after ${count(turn.tokens?.length ?? 0, 'token')}.` : turn.stopped}</p>}
      {turn.cut && <p class="fine">{`Cut off after ${count(turn.usage?.completion_tokens ?? turn.tokens?.length ?? 0, 'token')}: no answer is longer, as the settings above say, or the model can hold no more.`}</p>}
      <footer class="about">
        {outcome && <Badge text={outcome.verdict} />}
        {outcome && VERDICTS[outcome.verdict] && <span>{VERDICTS[outcome.verdict]}</span>}
        {outcome?.stages.length ? (
          <span>{outcome.stages.map(({ peer, layers: of }) => `${labelOf(pool, peer)} (${layers(of)})`).join(' → ')}</span>
        ) : null}
        {outcome && outcome.failovers > 0 && <Badge text={count(outcome.failovers, 'failover')} tone="fair" />}
        {usage && <span>{count(usage.completion_tokens, 'token')}</span>}
        {timings && timings.answer_tokens_per_s > 0 && <span>{digits(timings.answer_tokens_per_s)} tokens/s</span>}
        {speed && <span>first after {seconds(speed.first_ms / 1000)}</span>}
        {speed?.confidence != null && <span>confidence {percent(speed.confidence)}</span>}
        {outcome?.receipts.map((id) => (
          <a key={id} href={`#/activity/receipts/${id}`}>
            check receipt {id}
          </a>
        ))}
        {speed && (
          <button class="quiet" aria-pressed={detailed} onClick={() => setDetailed(!detailed)}>
            Tokens
          </button>
        )}
        {again && (
          <button class="quiet" onClick={() => regenerate(again)}>
            Regenerate
          </button>
        )}
      </footer>
    </article>
  )
}

/** What a verdict means, where it leaves something to do. */
const VERDICTS: Record<string, string> = {
  unchecked: 'signed by its nodes, not computed again so far',
  'tolerance-checked': 'computed again, and equal within a tolerance',
}

/** Until the first token: how far the node says that the reading of the prompt is. */
function Reading({ prefill }: { prefill: Prefill | null }) {
  if (!prefill) return <p class="fine">Waiting for a place…</p>
  const { tokens, computed } = prefill
  const text = computed > 0 ? `Read ${computed.toLocaleString('en')} of ${count(tokens, 'token')} of the prompt` : `Reading ${count(tokens, 'token')} of the prompt`
  const rest = left(prefill)
  return (
    <div class="reading">
      <p class="fine">
        {text}
        {rest !== null && rest > 0.3 && `, about ${seconds(rest)} left`}
      </p>
      {computed > 0 ? <Bar label={text} value={computed} max={tokens} /> : <progress aria-label={text} />}
    </div>
  )
}

/** That the answer has lost the nodes that computed it, while it is written. The node's list of jobs says so. */
function Moved({ model }: { model: string }) {
  const jobs = useState((state) => state.jobs.jobs)
  const pool = useState((state) => state.pool.pool)
  const asked = jobs.filter((job) => job.kind === 'generation' && job.subject === model && isLive(job))
  // With several answers at once it is not known which of them this is.
  const failover = asked.length === 1 ? asked[0]?.failover : null
  return failover ? <Failover failover={failover} pool={pool} /> : null
}

/** Every token with when it came and how sure the model was. */
function TokenList({ tokens }: { tokens: Token[] }) {
  return (
    <p class="tokens">
      {tokens.map((token, index) => {
        const sure = confidence(token.p)
        const before = tokens[index - 1]?.ms ?? 0
        const about = `${sure ? `${sure.text}, ` : ''}${index === 0 ? 'first after' : 'after'} ${seconds((token.ms - before) / 1000)}`
        return (
          <span key={index} class={`token sure-${sure?.step ?? 'unknown'}`} title={about}>
            {token.text}
          </span>
        )
      })}
    </p>
  )
}

function Composer({ id, model, writing }: { id: string | null; model: string; writing: boolean }) {
  const [text, setText] = useLocal('')
  const send = () => {
    if (!text.trim() || writing || !model) return
    void say(id, text.trim(), model)
    setText('')
  }
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault()
        send()
      }}
    >
      <label class="unseen" for="message">
        Message
      </label>
      <textarea
        id="message"
        rows={2}
        placeholder={model ? `Ask ${model}` : 'No model is served: load one under Models'}
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
            event.preventDefault()
            send()
          }
        }}
      />
      {writing ? (
        <button type="button" class="primary" onClick={stop}>
          Stop
        </button>
      ) : (
        <button type="submit" class="primary" disabled={!text.trim() || !model}>
          Send
        </button>
      )}
    </form>
  )
}
