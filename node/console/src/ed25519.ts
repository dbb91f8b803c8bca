// Ed25519 by WebCrypto. A page that is not secure (http:// at another address than localhost) has none; there the same check is
// computed by a library, which is fetched only then.

import type { Verify } from './receipt'

export const verify: Verify = async (key, signature, message) => {
  if (globalThis.crypto?.subtle) {
    const bytes = (part: Uint8Array) => part as Uint8Array<ArrayBuffer>
    try {
      const imported = await crypto.subtle.importKey('raw', bytes(key), { name: 'Ed25519' }, false, ['verify'])
      return await crypto.subtle.verify({ name: 'Ed25519' }, imported, bytes(signature), bytes(message))
    } catch (error) {
      // A browser whose WebCrypto does not know Ed25519.
      if (!(error instanceof DOMException && error.name === 'NotSupportedError')) return false
    }
  }
  return (await import('./ed25519-library')).verify(key, signature, message)
}
