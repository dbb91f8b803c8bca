// The state for views.

import { Component, type ComponentType, createElement } from 'preact'

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
