// One state, changed by actions through a pure reducer. Actions that arrive within one frame are reduced together, so that a
// hundred events per second cost one rendering per frame.

import { useEffect, useState } from 'preact/hooks'

export type Reducer<S, A> = (state: S, action: A) => S

/** Calls back once before the next frame; a hidden page has no frames. */
export type Schedule = (run: () => void) => void

const beforeNextFrame: Schedule = (run) => {
  if (document.hidden) setTimeout(run, 100)
  else requestAnimationFrame(run)
}

export class Store<S, A> {
  private queue: A[] = []
  private readonly listeners = new Set<() => void>()

  constructor(
    private readonly reduce: Reducer<S, A>,
    private current: S,
    private readonly schedule: Schedule = beforeNextFrame,
  ) {}

  get state(): S {
    return this.current
  }

  dispatch(action: A): void {
    this.queue.push(action)
    if (this.queue.length === 1) this.schedule(() => this.flush())
  }

  /** Reduces what is queued now. */
  flush(): void {
    const actions = this.queue
    this.queue = []
    const before = this.current
    for (const action of actions) this.current = this.reduce(this.current, action)
    if (this.current !== before) for (const listener of [...this.listeners]) listener()
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener)
    return () => this.listeners.delete(listener)
  }
}

/** A part of the state; the component renders again when that part is another one. */
export function useSelected<S, A, T>(store: Store<S, A>, select: (state: S) => T): T {
  const selected = select(store.state)
  const [, render] = useState({})
  useEffect(() => {
    let last = select(store.state)
    if (last !== selected) render({})
    return store.subscribe(() => {
      const next = select(store.state)
      if (next !== last) {
        last = next
        render({})
      }
    })
  }, [store])
  return selected
}
