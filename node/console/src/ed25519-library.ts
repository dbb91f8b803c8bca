// Ed25519 without WebCrypto. With the strict rules of RFC 8032, as WebCrypto and the node have them.

import { hashes, verify as noble } from '@noble/ed25519'
import { sha512 } from '@noble/hashes/sha2.js'

import type { Verify } from './receipt'

hashes.sha512 = sha512

export const verify: Verify = async (key, signature, message) => noble(signature, message, key, { zip215: false })
