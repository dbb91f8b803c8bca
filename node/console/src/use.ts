// The state for views.

import { store } from './effects'
import type { State } from './state'
import { useSelected } from './store'

export function useState<T>(select: (state: State) => T): T {
  return useSelected(store, select)
}
