// The frame of the console: navigation, log-in, the view that the address names.

import { useEffect, useRef, useState as useLocal } from 'preact/hooks'

import { Activity } from './activity'
import { Chat } from './chat-view'
import { logIn, logOut } from './effects'
import { key } from './api'
import { MetricsView } from './metrics-view'
import { ModelsView } from './models-view'
import { Failure } from './parts'
import { Products } from './products-view'
import { Topology } from './topology'
import { useState } from './use'

const VIEWS = [
  { id: 'topology', title: 'Topology', icon: 'M5 6a2 2 0 1 0 4 0 2 2 0 0 0-4 0m10 2a2 2 0 1 0 4 0 2 2 0 0 0-4 0M9 18a2 2 0 1 0 4 0 2 2 0 0 0-4 0M9 6.5l6 1.2M8 8l2.500 8M16 9.800l-4 6.500', view: Topology },
  { id: 'chat', title: 'Chat', icon: 'M4 5h16v11H10l-4 4v-4H4z', view: Chat },
  { id: 'models', title: 'Models', icon: 'M4 7l8-4 8 4-8 4zM4 12l8 4 8-4M4 17l8 4 8-4', view: ModelsView },
  { id: 'products', title: 'Products', icon: 'M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z', view: Products },
  { id: 'activity', title: 'Activity', icon: 'M4 6h16M4 12h16M4 18h10', view: Activity },
  { id: 'metrics', title: 'Metrics', icon: 'M4 4v16h16M7 15l4-5 3 3 5-7', view: MetricsView },
] as const

export function App() {
  const phase = useState((state) => state.phase)
  const route = useState((state) => state.route)
  const status = useState((state) => state.status)
  const live = useState((state) => state.jobs.live)
  const open = VIEWS.find(({ id }) => id === route[0]) ?? VIEWS[0]
  const main = useRef<HTMLElement>(null)
  useEffect(() => {
    document.title = `${open.title} · Pangea`
  }, [open.id])
  if (phase === 'login') return <LogIn />
  const state = phase === 'lost' ? 'not reachable' : phase === 'starting' ? 'connecting' : live ? 'live' : 'connected'
  return (
    <div class="frame">
      <header class="top">
        <a
          class="skip"
          href={`#/${route.join('/')}`}
          onClick={(event) => {
            event.preventDefault()
            main.current?.focus()
          }}
        >
          Skip to the content
        </a>
        <img src="/console/icon.svg" alt="" width="28" height="28" />
        <p class="brand">
          Pangea <span class="node-name">{status?.name}</span>
        </p>
        <p class={`state ${phase === 'lost' ? 'bad' : 'good'}`} role="status">
          {state}
        </p>
        {key.get() && (
          <button class="quiet" onClick={logOut}>
            Log out
          </button>
        )}
      </header>
      <nav aria-label="Views">
        {VIEWS.map(({ id, title, icon }) => (
          <a key={id} href={`#/${id}`} aria-current={id === open.id ? 'page' : undefined}>
            <svg viewBox="0 0 24 24" aria-hidden="true">
              <path d={icon} />
            </svg>
            <span>{title}</span>
          </a>
        ))}
        <p class="fine">
          <a href="/console/licences.txt">Licences</a>
        </p>
      </nav>
      <main ref={main} tabIndex={-1}>
        <h1 class="unseen">{open.title}</h1>
        {phase === 'lost' && <Failure text="The node does not answer. Is it running? The console goes on asking." />}
        <open.view />
      </main>
    </div>
  )
}

function LogIn() {
  const refused = useState((state) => state.refused)
  const [secret, setSecret] = useLocal('')
  return (
    <main class="login">
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault()
          if (secret.trim()) logIn(secret.trim())
        }}
      >
        <h1>Pangea</h1>
        <p>This node asks for an API key. It is kept in this tab and forgotten with it.</p>
        <label for="key">API key</label>
        <input id="key" type="password" autocomplete="current-password" value={secret} onInput={(event) => setSecret(event.currentTarget.value)} required />
        <Failure text={refused} />
        <button class="primary" type="submit">
          Log in
        </button>
      </form>
    </main>
  )
}
