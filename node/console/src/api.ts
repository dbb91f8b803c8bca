// The node's HTTP API. Adds the key, turns failures into ApiError; knows no view.

import { eventsOf, type ServerEvent } from './sse'

/** A failure with what the node says about it. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    /** Seconds after which the request may be repeated. */
    readonly retryAfter: number | null = null,
  ) {
    super(message)
  }
}

const KEY = 'pangea.key'

/** The API key of this tab. It is forgotten with the tab. */
export const key = {
  get: (): string => sessionStorage.getItem(KEY) ?? '',
  set: (value: string): void => sessionStorage.setItem(KEY, value),
  forget: (): void => sessionStorage.removeItem(KEY),
}

let refused = () => {}

/** Calls back whenever the node asks for a key. */
export function onRefused(callback: () => void): void {
  refused = callback
}

async function failure(response: Response): Promise<ApiError> {
  let message = `${response.status} ${response.statusText}`
  try {
    const body = await response.json()
    const error = body?.error
    message = (typeof error === 'string' ? error : error?.message) ?? message
  } catch {
    // The status says what there is to say.
  }
  const after = Number(response.headers.get('retry-after'))
  return new ApiError(message, response.status, after > 0 ? after : null)
}

export interface Ask {
  body?: unknown
  /** Bytes instead of JSON. */
  bytes?: Blob
  signal?: AbortSignal
}

export async function ask(path: string, { body, bytes, signal }: Ask = {}): Promise<Response> {
  const headers: Record<string, string> = {}
  if (key.get()) headers.authorization = `Bearer ${key.get()}`
  if (bytes) headers['content-type'] = 'application/octet-stream'
  else if (body !== undefined) headers['content-type'] = 'application/json'
  const sends = bytes ?? (body === undefined ? undefined : JSON.stringify(body))
  let response: Response
  try {
    response = await fetch(path, {
      method: sends === undefined ? 'GET' : 'POST',
      headers,
      body: sends ?? null,
      signal: signal ?? null,
      cache: 'no-store',
    })
  } catch (error) {
    if (signal?.aborted) throw error
    throw new ApiError('the node cannot be reached', 0)
  }
  if (response.ok) return response
  if (response.status === 401) refused()
  throw await failure(response)
}

export async function json<T>(path: string, options?: Ask): Promise<T> {
  return (await ask(path, options)).json()
}

export async function* events(path: string, options?: Ask): AsyncGenerator<ServerEvent> {
  const { body } = await ask(path, options)
  if (body) yield* eventsOf(body)
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
