import { expect, test } from 'vitest'

import { EventParser } from '../src/sse'

const STREAM = ': hello\n\nevent: started\ndata: {"id": 1}\n\ndata: a\ndata: b\n\nevent: x\n\ndata:c\r\n\r\n'
const EVENTS = [
  { event: 'started', data: '{"id": 1}' },
  { event: 'message', data: 'a\nb' },
  { event: 'message', data: 'c' },
]

test('events are the same wherever the stream is cut', () => {
  for (let at = 0; at <= STREAM.length; at += 1) {
    const parser = new EventParser()
    expect([...parser.push(STREAM.slice(0, at)), ...parser.push(STREAM.slice(at))], `cut at ${at}`).toEqual(EVENTS)
  }
  const parser = new EventParser()
  expect([...STREAM].flatMap((character) => parser.push(character))).toEqual(EVENTS)
})

test('an event that is not whole is not told', () => {
  expect(new EventParser().push('data: half\n')).toEqual([])
})
