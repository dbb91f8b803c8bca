// The state for views.

import { Component, type ComponentType, createElement } from 'preact'
import { useEffect, useState as useLocal } from 'preact/hooks'

import { store } from './effects'
import type { State } from './state'
import { useSelected } from './store'

export function useState<T>(select: (state: State) => T): T {
  return useSelected(store, select)
}

/** A component that renders again only when one of its properties is another one. */
export function memo<P extends object>(view: ComponentType<P>): ComponentType<P> {
  return class extends Component<P> {
    override shouldComponentUpdate(next: P): boolean {
      const names = Object.keys(next) as (keyof P)[]
      return names.some((name) => next[name] !== this.props[name])
    }

    override render() {
      return createElement(view, this.props)
    }
  } as unknown as ComponentType<P>
}

/** Whether a media query holds now. */
export function useMedia(query: string): boolean {
  const [holds, setHolds] = useLocal(() => matchMedia(query).matches)
  useEffect(() => {
    const media = matchMedia(query)
    const change = () => setHolds(media.matches)
    media.addEventListener('change', change)
    return () => media.removeEventListener('change', change)
  }, [query])
  return holds
}
