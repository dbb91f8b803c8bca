import { expect, test } from 'vitest'

import { type ChatAction, confidence, CONVERSATIONS, kept, left, messages, noChat, pace, pieceOf, reduceChat } from '../src/chat'

const run = (...actions: ChatAction[]) => actions.reduce(reduceChat, noChat)
const ask = (id: string, text: string, now = 1): ChatAction => ({ type: 'chat/ask', id, text, model: 'tiny', now })
const piece = (id: string, text: string): ChatAction => ({
  type: 'chat/piece',
  id,
  piece: { text, reasoning: '', tokens: [{ text, ms: 10, p: 0.5 }] },
})

test('an answer is written piece by piece and ends with what is known of it', () => {
  const outcome = { verdict: 'audited', stages: [], failovers: 1, receipts: ['ab'] }
  const writing = run(ask('1', 'Hi'), { type: 'chat/prefill', tokens: 5, computed: 0, ms: 1 }, piece('1', 'Hel'), piece('1', 'lo'))
  expect([writing.writing, writing.prefill]).toEqual(['1', null])
  const state = reduceChat(writing, { type: 'chat/done', id: '1', outcome })
  const [question, answer] = state.conversations[0]?.turns ?? []
  expect([question?.text, answer?.text, answer?.tokens?.length, answer?.outcome, state.writing]).toEqual(['Hi', 'Hello', 2, outcome, null])
})

test('a stopped answer keeps what was written', () => {
  const state = run(ask('1', 'Hi'), piece('1', 'Hel'), { type: 'chat/done', id: '1', stopped: 'stopped' })
  expect(state.conversations[0]?.turns[1]).toMatchObject({ text: 'Hel', stopped: 'stopped' })
})

test('an answer that has as many tokens as it may have says so', () => {
  const cut = run(ask('1', 'Hi'), piece('1', 'Hel'), { type: 'chat/done', id: '1', cut: true })
  const whole = run(ask('1', 'Hi'), piece('1', 'Hel'), { type: 'chat/done', id: '1', cut: false })
  expect([cut, whole].map(({ conversations }) => conversations[0]?.turns[1]?.cut)).toEqual([true, undefined])
})

test('an answer that is written while another conversation is shown goes into its own', () => {
  const state = run(ask('1', 'One'), { type: 'chat/done', id: '1' }, ask('2', 'Two'), piece('2', 'x'))
  expect(state.conversations.map(({ id, turns }) => [id, turns[1]?.text])).toEqual([
    ['2', 'x'],
    ['1', ''],
  ])
})

test('regenerating replaces the last answer and asks the same', () => {
  const state = run(ask('1', 'Hi'), piece('1', 'bad'), { type: 'chat/done', id: '1' }, { type: 'chat/regenerate', id: '1', now: 2 })
  const conversation = state.conversations[0]
  expect(conversation?.turns.map(({ role, text }) => [role, text])).toEqual([
    ['user', 'Hi'],
    ['assistant', ''],
  ])
  expect(conversation && messages(conversation, ' Be brief. ')).toEqual([
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Hi' },
  ])
})

test('the oldest conversations go, and what is kept comes back', () => {
  const many = Array.from({ length: CONVERSATIONS + 5 }, (_, id) => ask(`${id}`, `question ${id}`))
  const state = run(...many)
  expect(state.conversations).toHaveLength(CONVERSATIONS)
  expect(state.conversations.at(-1)?.id).toBe('5')
  const again = run({ type: 'chat/restored', kept: JSON.parse(JSON.stringify(kept(state))) })
  expect(again.conversations).toEqual(state.conversations)
})

test('what another version kept is no reason to fail', () => {
  for (const bad of [{}, { conversations: 7 }, { conversations: [null, { id: 1 }, { id: 'x', title: 't', turns: [{}] }] }]) {
    expect(run({ type: 'chat/restored', kept: bad as never }).conversations).toEqual([])
  }
})

test('a chunk gives text, tokens with their probabilities, and reasoning', () => {
  const logprobs = { content: [{ token: 'Hi', logprob: Math.log(0.25) }] }
  const found = pieceOf({ choices: [{ delta: { content: 'Hi', reasoning_content: 'r' }, logprobs }] }, 12)
  expect(found).toEqual({ text: 'Hi', reasoning: 'r', tokens: [{ text: 'Hi', ms: 12, p: 0.25 }] })
  expect(pieceOf({ choices: [{ delta: { content: 'Hi' } }] }, 12).tokens).toEqual([{ text: 'Hi', ms: 12, p: null }])
  expect(pieceOf({ choices: [] }, 12)).toEqual({ text: '', reasoning: '', tokens: [] })
})

test('how far a prompt is read is what the node says, and the rest follows from the pace so far', () => {
  const read = (computed: number, ms: number): ChatAction => ({ type: 'chat/prefill', tokens: 1000, computed, ms })
  const begun = run(ask('1', 'Hi'), read(0, 100))
  expect([begun.prefill?.computed, begun.prefill && left(begun.prefill)]).toEqual([0, null])
  const on = [read(200, 600), read(400, 1100)].reduce(reduceChat, begun)
  expect([on.prefill?.computed, on.prefill && left(on.prefill)]).toEqual([400, 1.5])
  // What an earlier request had computed does not count as pace.
  const cached = run(ask('2', 'Hi'), read(600, 100), read(800, 300))
  expect(cached.prefill && left(cached.prefill)).toBeCloseTo(0.2)
})

test('pace and confidence come from the tokens', () => {
  const tokens = [0.5, 0.5, 0.125].map((p, index) => ({ text: 'a', ms: 100 + 50 * index, p }))
  expect(pace(tokens)).toEqual({ first_ms: 100, tokens_per_s: 20, confidence: expect.closeTo(0.315, 3) })
  expect(pace([])).toBeNull()
  expect([confidence(0.95), confidence(0.05), confidence(null)]).toEqual([{ step: 4, text: '95 %' }, { step: 0, text: '5 %' }, null])
})
