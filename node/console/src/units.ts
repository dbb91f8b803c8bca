// Numbers, sizes and times as people read them. Pure.

const BINARY = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']

/** Three significant digits, without an exponent. */
export function digits(value: number): string {
  if (!Number.isFinite(value)) return '–'
  const size = Math.abs(value)
  if (size >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString('en')
  return value.toFixed(size >= 10 ? 1 : 2)
}

export function bytes(value: number): string {
  let unit = 0
  while (Math.abs(value) >= 1024 && unit < BINARY.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${digits(value)} ${BINARY[unit]}`
}

/** `–` for 0, which means that nothing was measured. */
export function rate(bytesPerSecond: number): string {
  return bytesPerSecond > 0 ? `${bytes(bytesPerSecond)}/s` : '–'
}

export function seconds(value: number): string {
  if (!Number.isFinite(value)) return '–'
  if (value < 1e-3) return `${digits(value * 1e6)} µs`
  if (value < 1) return `${digits(value * 1e3)} ms`
  if (value < 120) return `${digits(value)} s`
  if (value < 7200) return `${digits(value / 60)} min`
  if (value < 172_800) return `${digits(value / 3600)} h`
  return `${digits(value / 86_400)} d`
}

export function count(value: number, one: string, many = `${one}s`): string {
  return `${value.toLocaleString('en')} ${value === 1 ? one : many}`
}

export function percent(share: number): string {
  return `${Math.round(share * 100)} %`
}

/** A peer id's end, by which people tell peers apart. */
export function shortPeer(peer: string): string {
  return peer.length > 8 ? `…${peer.slice(-6)}` : peer
}

/** Layers as people count them: the first and the last, from 0. */
export function layers([first, end]: readonly [number, number]): string {
  return end - first === 1 ? `layer ${first}` : `layers ${first}–${end - 1}`
}

/** The time of day. */
export function clock(unixMs: number): string {
  return new Date(unixMs).toLocaleTimeString('en-GB')
}

export function dateTime(unixMs: number): string {
  const time = new Date(unixMs)
  return `${time.toLocaleDateString('en-CA')} ${time.toLocaleTimeString('en-GB')}`
}
