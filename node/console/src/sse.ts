// Server-sent events from the bytes of a response, whatever the pieces in which they arrive. Pure.

export interface ServerEvent {
  event: string
  data: string
}

/** Splits a stream of text into events. */
export class EventParser {
  private rest = ''

  /** The events that `text` completes. */
  push(text: string): ServerEvent[] {
    const lines = (this.rest + text).split(/\r\n|\n|\r(?!$)/)
    const events: ServerEvent[] = []
    let event = ''
    let data: string[] = []
    let from = 0
    for (const [index, line] of lines.entries()) {
      // The last line may go on in the next piece.
      if (index === lines.length - 1) break
      if (line === '') {
        if (data.length > 0) events.push({ event: event || 'message', data: data.join('\n') })
        event = ''
        data = []
        from = index + 1
      } else if (line.startsWith('data:')) {
        data.push(line.slice(5).replace(/^ /, ''))
      } else if (line.startsWith('event:')) {
        event = line.slice(6).replace(/^ /, '')
      }
    }
    this.rest = lines.slice(from).join('\n')
    return events
  }
}

/** The events of a response, as they arrive. */
export async function* eventsOf(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent> {
  const reader = body.getReader()
  const text = new TextDecoder()
  const parser = new EventParser()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      yield* parser.push(text.decode(value, { stream: true }))
    }
  } finally {
    await reader.cancel().catch(() => {})
  }
}
