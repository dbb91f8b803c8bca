import { expect, test } from 'vitest'

import { blocks, isSafe } from '../src/markdown'

/** The elements and texts that a view makes of a Markdown text. */
function made(text: string): string {
  return show(blocks(text))
}

function show(node: unknown): string {
  if (node === null || node === undefined || typeof node === 'boolean') return ''
  if (Array.isArray(node)) return node.map(show).join('')
  if (typeof node !== 'object') return String(node).replaceAll('<', '&lt;')
  const { type, props } = node as { type: string; props: Record<string, unknown> }
  const href = props.href ? ` href=${String(props.href)}` : ''
  expect(Object.keys(props)).not.toContain('dangerouslySetInnerHTML')
  return `<${type}${href}>${show(props.children)}</${type}>`
}

test('what models write is shown as what it means', () => {
  expect(made('# A\n\n*b* **c** `d`')).toBe('<h3>A</h3><p><em>b</em> <strong>c</strong> <code>d</code></p>')
  expect(made('1. x\n2. y')).toBe('<ol><li>x</li><li>y</li></ol>')
  expect(made('```js\na < b\n```')).toBe('<pre><code>a &lt; b</code></pre>')
  expect(made('|a|b|\n|-|-|\n|1|2|')).toContain('<tbody><tr><td>1</td><td>2</td></tr></tbody>')
})

test('hostile text stays text', () => {
  for (const text of ['<script>alert(1)</script>', '<img src=x onerror=alert(1)>', 'a <b onclick="x()">c</b>']) {
    const shown = made(text)
    expect(shown).not.toMatch(/<(script|img|b)/)
    expect(shown).toContain('&lt;')
  }
  expect(made('[x](javascript:alert(1))')).not.toContain('<a')
  expect(made('![x](javascript:alert(1))')).not.toContain('<a')
  expect(made('![x](https://e.org/i.png)')).toBe('<p><a href=https://e.org/i.png>x</a></p>')
})

test('only addresses of pages and mailboxes are links', () => {
  expect(['https://e.org', 'http://e.org/a', 'mailto:a@e.org'].every(isSafe)).toBe(true)
  for (const other of ['javascript:alert(1)', 'JaVaScRiPt:alert(1)', 'data:text/html,x', 'vbscript:x', '/relative', '', 'file:///etc']) {
    expect(isSafe(other), other).toBe(false)
  }
})
