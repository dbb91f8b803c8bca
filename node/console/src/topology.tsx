// The pool as a graph and as a list: nodes, links, what runs on which path, who waits to be accepted, and how to add a device.

import { useMemo, useState as useLocal } from 'preact/hooks'

import { accept, compare, hideInvitation, invite, revoke, say } from './effects'
import { chain, isLive, type Job } from './jobs'
import { askable, modelToAsk } from './models'
import { Badge, Bar, Card, Empty, Fact, Failover, Failure, Scroll } from './parts'
import { arrow, BUSY, type Link, labels, passing, path, places, type Pool, type PoolNode, poolModels, reverse, trust } from './pool'
import type { Member, State, Status } from './state'
import { bytes, count, digits, layers, rate, seconds, shortPeer } from './units'
import { memo, useMedia, useState } from './use'

export function Topology() {
  const pool = useState((state) => state.pool.pool)
  const names = useNames(pool)
  if (!pool) return <Empty>Asking the node for its pool…</Empty>
  return (
    <div class="overview">
      <Ask pool={pool} names={names} />
      <Picture pool={pool} names={names} />
      <div class="side">
        <Waiting />
        <Running pool={pool} names={names} />
        <Invite />
      </div>
      <NodeList pool={pool} names={names} />
      <Links links={pool.links} names={names} local={pool.local} />
      {pool.absent.length > 0 && <Absent pool={pool} />}
    </div>
  )
}

/** The names of the nodes, the same map while they are the same. */
function useNames(pool: Pool | null): Map<string, string> {
  const nodes = pool?.nodes ?? []
  const text = nodes.map(({ peer, name }) => `${peer} ${name}`).join()
  return useMemo(() => labels(nodes), [text])
}

interface PoolProps {
  pool: Pool
  names: Map<string, string>
}

/** The way to the chat: a question is asked here, and answered there. */
const Ask = memo(function Ask({ pool, names }: PoolProps) {
  const served = useState((state) => state.models.served)
  const chosen = useState((state) => state.chat.model)
  const writing = useState((state) => state.chat.writing)
  const [text, setText] = useLocal('')
  const models = askable(served, poolModels(pool))
  const model = modelToAsk(chosen, served, models)
  if (!model) {
    return (
      <section class="card wide ask" aria-labelledby="ask-heading">
        <h2 id="ask-heading">Chat</h2>
        <p>
          No model is served yet: <a href="#/models">load or download one</a> to chat with it.
        </p>
      </section>
    )
  }
  const nodes = path(pool, model)
  const by = nodes.map(({ peer }) => names.get(peer) ?? shortPeer(peer))
  return (
    <section class="card wide ask" aria-labelledby="ask-heading">
      <h2 id="ask-heading">Chat with {model}</h2>
      <p class="fine">
        {by.length > 1 ? `Its layers are on ${count(by.length, 'node')}, which answer together: ${by.join(' → ')}.` : by.length === 1 ? `${by[0]} answers.` : 'It is being placed on nodes.'}
      </p>
      <form
        class="composer"
        onSubmit={(event) => {
          event.preventDefault()
          if (text.trim() && writing === null) void say(null, text.trim(), model)
        }}
      >
        <label class="unseen" for="question">
          Question
        </label>
        <input id="question" autocomplete="off" placeholder={`Ask ${model} something`} value={text} onInput={(event) => setText(event.currentTarget.value)} />
        <button class="primary" type="submit" disabled={!text.trim() || writing !== null}>
          Ask
        </button>
      </form>
    </section>
  )
})

/**
 * The nodes of the answers that are computed now, one answer a line, as one text, so that a view renders again only when it
 * changes: the model, and the peers where they are known.
 */
function asked(state: State): string {
  const generations = state.jobs.jobs.filter((job) => job.kind === 'generation' && isLive(job))
  const lines = generations.map(({ subject, stages }) => [subject, ...stages.map(({ peer }) => peer)].join('\t'))
  return [...new Set(lines)].sort().join('\n')
}

/** The peers of a line of [`asked`]; those of the model's placement where the answer has none of its own. */
function peersOf(pool: Pool, line: string): string[] {
  const [model = '', ...peers] = line.split('\t')
  return peers.length > 0 ? peers : path(pool, model).map(({ peer }) => peer)
}

const Picture = memo(function Picture({ pool, names }: PoolProps) {
  const [model, setModel] = useLocal('')
  const runs = useState(asked)
  // Without a choice, the paths of what runs light up.
  const paths = useMemo(() => (model || runs).split('\n').map((line) => peersOf(pool, line)), [model, runs, pool])
  return (
    <Card
      title="Pool"
      more={
        <label class="inline">
          Light up{' '}
          <select value={model} onChange={(event) => setModel(event.currentTarget.value)}>
            <option value="">what runs</option>
            {poolModels(pool).map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
      }
    >
      <Graph pool={pool} names={names} paths={paths} />
      <p class="summary">
        {count(pool.nodes.length, 'node')}, {count(pool.links.length / 2, 'connection')}, master{' '}
        {pool.master ? (names.get(pool.master) ?? shortPeer(pool.master)) : 'not elected yet'}.
        {pool.nodes.length === 1 && ' Start `pangea node` on another machine of this network, or invite one below.'}
      </p>
    </Card>
  )
})

const NodeList = memo(function NodeList({ pool, names }: PoolProps) {
  const status = useState((state) => state.status)
  const traffic = useState((state) => state.pool.traffic)
  return (
    <section class="wide" aria-labelledby="nodes-heading">
      <h2 id="nodes-heading">Nodes</h2>
      <ul class="nodes">
        {pool.nodes.map((node) => {
          const moved = traffic[node.peer]
          return (
            <Node key={node.peer} node={node} name={names.get(node.peer) ?? node.peer} status={node.local ? status : null} sent={moved?.sent ?? 0} received={moved?.received ?? 0} />
          )
        })}
      </ul>
    </section>
  )
})

const Graph = memo(function Graph({ pool, names, paths }: PoolProps & { paths: string[][] }) {
  const traffic = useState((state) => state.pool.traffic)
  const peers = pool.nodes.map(({ peer }) => peer)
  const isFew = peers.length <= 2
  const isNarrow = useMedia('(max-width: 46rem)')
  const [width, height] = isNarrow ? [380, isFew ? 190 : 340] : [760, isFew ? 230 : 400]
  const at = useMemo(() => places(peers, width, height), [peers.join(), width])
  const lit = new Set(paths.flat())
  const hops = new Set(paths.flatMap((one) => one.slice(1).map((peer, index) => hop(one[index] ?? '', peer))))
  // One line for both directions: every connection is listed in both.
  const connections = pool.links.filter(({ from, to }) => from < to)
  return (
    <svg class="graph" viewBox={`0 0 ${width} ${height}`} role="img" aria-label={`Graph of ${count(peers.length, 'node')}; the lists below say the same`}>
      {connections.map((link) => {
        const [from, to] = [at.get(link.from), at.get(link.to)]
        if (!from || !to) return null
        const other = reverse(link, pool.links)
        const there = passing(link, pool.local, traffic)
        const back = other ? passing(other, pool.local, traffic) : 0
        const classes = ['link', hops.has(hop(link.from, link.to)) && 'lit', there + back > BUSY && 'moving'].filter(Boolean).join(' ')
        const [x, y] = [(from.x + to.x) / 2, (from.y + to.y) / 2]
        const now = [`${arrow(from, to)} ${rate(there)}`, `${arrow(to, from)} ${rate(back)}`]
        // Beside each other on a phone, those of two links would overlap.
        const lines = isNarrow ? now : [now.join(' ')]
        return (
          <g key={`${link.from} ${link.to}`} class={classes}>
            <line x1={from.x} y1={from.y} x2={to.x} y2={to.y} />
            {peers.length <= 8 && (
              <text x={x} y={y - 8}>
                {seconds(link.rtt_ms / 1000)} · {rate(link.bytes_per_s)}
              </text>
            )}
            {peers.length <= 8 &&
              there + back > 0 &&
              lines.map((line, index) => (
                <text key={index} class="now" x={x} y={y + 18 + 16 * index}>
                  {line}
                </text>
              ))}
          </g>
        )
      })}
      {pool.nodes.map((node) => {
        const place = at.get(node.peer)
        if (!place) return null
        const classes = ['peer', node.local && 'own', lit.has(node.peer) && 'lit', node.quarantined && 'bad', !node.connected && 'away']
        const busy = node.serving.reduce((sum, { running }) => sum + running, 0)
        const isSmall = peers.length > 12
        return (
          <g key={node.peer} class={classes.filter(Boolean).join(' ')} transform={`translate(${place.x} ${place.y})`}>
            <circle r={isSmall ? 17 : 26} />
            {node.master && <path class="crown" d="M-9 -36 l4 6 5 -8 5 8 4 -6 v11 h-18z" />}
            <text class="glyph" y="5">
              {node.works ? node.stages.length + node.serving.length || '·' : '↗'}
            </text>
            <text class="name" y={isSmall ? 31 : 43}>
              {cut(names.get(node.peer) ?? '', isSmall ? 10 : 18)}
            </text>
            {!isSmall && (
              <text class="fine" y="58">
                {busy > 0 ? count(busy, 'answer') : cut(node.device, 20)}
              </text>
            )}
          </g>
        )
      })}
    </svg>
  )
})

function hop(one: string, other: string): string {
  return one < other ? `${one} ${other}` : `${other} ${one}`
}

function cut(text: string, length: number): string {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text
}

/** Jobs that are listed: what fits beside the picture. */
const RUNNING = 5

const Running = memo(function Running({ pool, names }: PoolProps) {
  const all = useState((state) => state.jobs.jobs)
  const jobs = all.filter(isLive)
  const receipts = useState((state) => state.receipts.list)
  const failovers = receipts.reduce((sum, { failovers }) => sum + failovers, 0)
  return (
    <Card title="Running" more={failovers > 0 ? <Badge text={count(failovers, 'failover')} tone="fair" /> : undefined}>
      {jobs.length === 0 && <Empty>Nothing runs now.</Empty>}
      <ul class="plain">
        {jobs.slice(0, RUNNING).map((job) => (
          <li key={job.id}>
            <p>
              <Badge text={job.state} /> {job.kind} <b>{job.subject}</b> <span class="fine">for {job.owner.client ?? job.owner.api}</span>
            </p>
            {job.kind === 'generation' && <Path job={job} pool={pool} names={names} />}
            <Progress job={job} />
          </li>
        ))}
      </ul>
      {jobs.length > RUNNING && <p class="fine">and {count(jobs.length - RUNNING, 'more job')}, listed under Activity</p>}
    </Card>
  )
})

/** The nodes that compute an answer, or the nodes that it lost and those that go on. */
function Path({ job, pool, names }: PoolProps & { job: Job }) {
  if (job.failover) return <Failover failover={job.failover} pool={pool} />
  const stages = job.stages.length > 0 ? job.stages : path(pool, job.subject)
  return <p class="fine">{chain(stages, (peer) => names.get(peer) ?? shortPeer(peer)) || 'its path is not known yet'}</p>
}

/** How far a job is; an answer without tokens, how far its prompt is. */
function Progress({ job: { id, kind, progress, prompt } }: { job: Job }) {
  const isReading = progress.done === 0 && prompt.total > 0
  const { done, total } = isReading ? prompt : progress
  return (
    <>
      <Bar label={isReading ? `Prompt of job ${id} that is read` : `Progress of job ${id}`} value={done} max={total} />
      {isReading && <p class="fine">{`${done.toLocaleString('en')} of ${count(total, 'token')} of the prompt are read`}</p>}
      {kind === 'download' && total > 0 && <p class="fine">{`${bytes(done)} of ${bytes(total)}`}</p>}
    </>
  )
}

interface NodeProps {
  node: PoolNode
  name: string
  /** Of the node that answers. */
  status: Status | null
  /** Bytes per second. */
  sent: number
  received: number
}

const Node = memo(function Node({ node, name, status: own, sent, received }: NodeProps) {
  const [used, limit] = own ? [own.memory_used_bytes, own.memory_limit_bytes] : [node.held_bytes, node.memory_bytes]
  const speeds = [...node.serving.map(({ name, tokens_per_s }) => ({ name, tokens_per_s })), ...node.stages].filter(({ tokens_per_s }) => tokens_per_s > 0)
  const { text: trustText, from: trustFrom } = trust(node)
  return (
    <li class={`card node${node.quarantined ? ' quarantined' : ''}`}>
      <h3>
        {name}{' '}
        {node.local && <Badge text="this node" tone="plain" />} {node.master && <Badge text="master" tone="busy" />}{' '}
        {!node.works && <Badge text="lite client" tone="plain" />} {node.quarantined && <Badge text="quarantined" />}{' '}
        {!node.connected && <Badge text="not connected" tone="fair" />}
      </h3>
      <p class="fine" title={node.peer}>
        {node.device || 'no device'}
        {node.threads > 0 && `, ${count(node.threads, 'thread')}`}
        {node.gflops > 0 && `, ${digits(node.gflops)} GFLOP/s`} · {shortPeer(node.peer)}
      </p>
      {node.why && <p class="failure">{node.why}</p>}
      {limit > 0 && (
        <>
          <Bar label={`Memory of ${name} in use`} value={used} max={limit} />
          <p class="fine">
            {bytes(Math.max(0, limit - used))} free of {bytes(limit)}
          </p>
        </>
      )}
      <dl class="facts">
        <Fact name="Trust">
          <span title={trustFrom}>{trustText}</span>
        </Fact>
        <Fact name="Version">
          {node.version || '–'} <span class="fine">numerics {node.numerics}</span>
        </Fact>
        <Fact name="Up">{seconds(own?.uptime_s ?? node.uptime_s)}</Fact>
        {!node.local && (
          <Fact name="Traffic">
            ↑ {rate(sent)} ↓ {rate(received)}
          </Fact>
        )}
        {speeds.length > 0 && (
          <Fact name="Tokens/s">{speeds.map(({ name, tokens_per_s }) => `${digits(tokens_per_s)} (${name})`).join(', ')}</Fact>
        )}
      </dl>
      <Holds node={node} />
    </li>
  )
})

function Holds({ node }: { node: PoolNode }) {
  const staged = new Set(node.stages.map(({ model }) => model))
  const others = node.models.filter(({ digest }) => !staged.has(digest))
  if (node.stages.length + others.length === 0) return <p class="fine">Holds no model.</p>
  return (
    <ul class="plain holds">
      {node.stages.map((stage) => (
        <li key={`${stage.model} ${stage.epoch}`}>
          <b>{stage.name}</b> {layers(stage.layers)} <Badge text={stage.state} />
          {stage.state === 'fetching' && <Bar label={`${stage.name} fetched`} value={stage.done_bytes} max={stage.total_bytes} />}
          {stage.why && <span class="failure">{stage.why}</span>}
        </li>
      ))}
      {others.map((model) => (
        <li key={model.digest}>
          {model.name} <span class="fine">{model.whole ? 'on disk' : 'pieces on disk'}{model.served ? ', served' : ''}</span>
        </li>
      ))}
    </ul>
  )
}

function Links({ links, names, local }: { links: Link[]; names: Map<string, string>; local: string }) {
  const traffic = useState((state) => state.pool.traffic)
  return (
    <section class="card wide" aria-labelledby="links-heading">
      <h2 id="links-heading">Links</h2>
      {links.length === 0 ? (
        <Empty>No connections.</Empty>
      ) : (
        <Scroll label="Links">
          <table>
            <thead>
              <tr>
                {['From', 'To', 'Over', 'Round trip', 'Measured', 'Now', 'Found by'].map((title) => (
                  <th key={title} scope="col">
                    {title}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {links.map((link) => {
                const now = passing(link, local, traffic)
                return <LinkRow key={`${link.from} ${link.to}`} link={link} from={names.get(link.from)} to={names.get(link.to)} now={now} />
              })}
            </tbody>
          </table>
        </Scroll>
      )}
    </section>
  )
}

interface LinkProps {
  link: Link
  from: string | undefined
  to: string | undefined
  /** Bytes per second that pass over it now. */
  now: number
}

const LinkRow = memo(function LinkRow({ link, from, to, now }: LinkProps) {
  return (
    <tr>
      <td>{from ?? shortPeer(link.from)}</td>
      <td>{to ?? shortPeer(link.to)}</td>
      <td>{link.transport}</td>
      <td class="number">{link.rtt_ms > 0 ? seconds(link.rtt_ms / 1000) : '–'}</td>
      <td class="number">{rate(link.bytes_per_s)}</td>
      <td class="number">{rate(now)}</td>
      <td>{link.found_by}</td>
    </tr>
  )
})

function Absent({ pool }: { pool: Pool }) {
  return (
    <section class="card wide" aria-labelledby="absent-heading">
      <h2 id="absent-heading">Not in the pool</h2>
      <ul class="plain">
        {pool.absent.map((peer) => (
          <li key={`${peer.peer} ${peer.addresses.join()}`}>
            <Badge text={peer.state} tone="fair" /> <b>{peer.name || (peer.peer && shortPeer(peer.peer)) || peer.addresses[0]}</b>{' '}
            <span class="fine">{peer.why || peer.addresses[0]}</span>
          </li>
        ))}
      </ul>
    </section>
  )
}

function Waiting() {
  const { members, busy, error } = useState((state) => state.membership)
  const waiting = members?.members.filter(({ state }) => state === 'pending') ?? []
  if (waiting.length === 0 && !error) return null
  return (
    <Card title="Waiting to be accepted">
      <Failure text={error} />
      <ul class="plain">
        {waiting.map((node) => (
          <Stranger key={node.peer} node={node} busy={busy === node.peer} />
        ))}
      </ul>
    </Card>
  )
}

function Stranger({ node, busy }: { node: Member; busy: boolean }) {
  const name = node.name || shortPeer(node.peer)
  return (
    <li class="stranger">
      <p>
        <b>{name}</b> <span class="fine">{shortPeer(node.peer)}</span>
      </p>
      {node.digits ? (
        <p>
          Accept it only if its own screen shows <b class="pin">{node.digits}</b>.
        </p>
      ) : (
        <p class="fine">It belongs to another pool. It is asked to show six digits, which you compare.</p>
      )}
      <p class="buttons">
        {node.digits ? (
          <button class="primary" disabled={busy} onClick={() => accept(node)}>
            The digits are the same: accept {name}
          </button>
        ) : (
          <button class="primary" disabled={busy} onClick={() => compare(node)}>
            {busy ? 'Asking…' : `Compare digits with ${name}`}
          </button>
        )}
        <button disabled={busy} onClick={() => revoke(node)}>
          Turn away
        </button>
      </p>
    </li>
  )
}

function Invite() {
  const { members, invitation, busy } = useState((state) => state.membership)
  if (!members) return null
  if (members.open) {
    return (
      <Card title="Add a device">
        <p>This pool is open: whoever is on the network is in. Start `pangea node --open` there.</p>
      </Card>
    )
  }
  return (
    <Card title="Add a device">
      {invitation ? (
        <>
          {invitation.pin && (
            <p>
              On the other device: <code>pangea join {invitation.pin.replace(/\s/g, '')}</code>
              <br />
              PIN <b class="pin">{invitation.pin}</b>, for one device, for {seconds(invitation.pin_life_s ?? 0)}.
            </p>
          )}
          <Qr rows={invitation.qr} />
          <label for="token">Or with the token, while it is valid:</label>
          <textarea id="token" class="token" readOnly rows={3} value={`pangea node --join ${invitation.token}`} />
          <button onClick={hideInvitation}>Hide</button>
        </>
      ) : (
        <>
          <p class="fine">A PIN and a QR code let one more device into pool {members.pool}. Neither contains the pool's key.</p>
          <button class="primary" disabled={busy === 'invitation'} onClick={() => invite(true)}>
            Invite a device
          </button>
        </>
      )}
    </Card>
  )
}

function Qr({ rows }: { rows: string[] }) {
  if (rows.length === 0) return null
  const side = rows.length + 8
  const squares = rows.flatMap((row, y) => [...row].map((square, x) => (square === '1' ? `M${x + 4} ${y + 4}h1v1h-1z` : '')))
  return (
    <svg class="qr" viewBox={`0 0 ${side} ${side}`} role="img" aria-label="QR code of the token below" shape-rendering="crispEdges">
      <path class="light" d={`M0 0h${side}v${side}h-${side}z`} />
      <path class="dark" d={squares.join('')} />
    </svg>
  )
}
