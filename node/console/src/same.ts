// The same value for the same content, so that views see by reference what has not changed. Pure.

/** `now`, with every part that equals its counterpart in `before` replaced by that. `now` is JSON, and is not used elsewhere. */
export function shared<T>(before: unknown, now: T): T {
  if (before === now || typeof before !== 'object' || typeof now !== 'object' || before === null || now === null) return now
  if (Array.isArray(before) !== Array.isArray(now)) return now
  const [old, fresh] = [before as Record<string, unknown>, now as Record<string, unknown>]
  const names = Object.keys(fresh)
  let isSame = names.length === Object.keys(old).length
  for (const name of names) {
    fresh[name] = shared(old[name], fresh[name])
    isSame &&= name in old && old[name] === fresh[name]
  }
  return isSame ? (before as T) : now
}
