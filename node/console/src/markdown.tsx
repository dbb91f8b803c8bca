// Markdown as elements. Nothing is ever set as HTML: what a model writes becomes text, and addresses other than http(s) and mailto
// become no links.

import { lexer, type Token, type Tokens } from 'marked'
import type { ComponentChildren } from 'preact'
import { useMemo } from 'preact/hooks'

export function Markdown({ text }: { text: string }) {
  return <div class="markdown">{useMemo(() => blocks(text), [text])}</div>
}

/** The elements of a text. */
export function blocks(text: string): ComponentChildren[] {
  return lexer(text).map(block)
}

const all = (tokens: Token[] | undefined) => tokens?.map(block)

function block(token: Token, index: number): ComponentChildren {
  switch (token.type) {
    case 'heading': {
      // A view has headings of the first two levels.
      const Heading = `h${Math.min(6, (token as Tokens.Heading).depth + 2)}` as 'h3'
      return <Heading key={index}>{all(token.tokens)}</Heading>
    }
    case 'paragraph':
      return <p key={index}>{all(token.tokens)}</p>
    case 'blockquote':
      return <blockquote key={index}>{all(token.tokens)}</blockquote>
    case 'code':
      return (
        <pre key={index} tabIndex={0}>
          <code>{token.text}</code>
        </pre>
      )
    case 'list': {
      const { ordered, items, start } = token as Tokens.List
      const entries = items.map((item, at) => (
        <li key={at}>
          {item.task && (item.checked ? '☑ ' : '☐ ')}
          {all(item.tokens)}
        </li>
      ))
      return ordered ? (
        <ol key={index} start={Number(start) || 1}>
          {entries}
        </ol>
      ) : (
        <ul key={index}>{entries}</ul>
      )
    }
    case 'table': {
      const { header, rows } = token as Tokens.Table
      return (
        <div key={index} class="scroll">
          <table>
            <thead>
              <tr>
                {header.map((cell, at) => (
                  <th key={at} scope="col">
                    {all(cell.tokens)}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {rows.map((row, at) => (
                <tr key={at}>
                  {row.map((cell, column) => (
                    <td key={column}>{all(cell.tokens)}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )
    }
    case 'hr':
      return <hr key={index} />
    case 'space':
    case 'def':
      return null
    case 'br':
      return <br key={index} />
    case 'strong':
      return <strong key={index}>{all(token.tokens)}</strong>
    case 'em':
      return <em key={index}>{all(token.tokens)}</em>
    case 'del':
      return <del key={index}>{all(token.tokens)}</del>
    case 'codespan':
      return <code key={index}>{token.text}</code>
    case 'link':
      return isSafe(token.href) ? (
        <a key={index} href={token.href} target="_blank" rel="noreferrer noopener">
          {all(token.tokens)}
        </a>
      ) : (
        token.raw
      )
    case 'image':
      // The console loads nothing from elsewhere.
      return isSafe(token.href) ? (
        <a key={index} href={token.href} target="_blank" rel="noreferrer noopener">
          {token.text || token.href}
        </a>
      ) : (
        token.raw
      )
    case 'escape':
      return token.text
    case 'text':
      return token.tokens ? all(token.tokens) : token.text
    default:
      return token.raw
  }
}

/** Whether an address leads to a page or to a mailbox; never to a script. */
export function isSafe(href: string): boolean {
  try {
    return ['http:', 'https:', 'mailto:'].includes(new URL(href).protocol)
  } catch {
    return false
  }
}
