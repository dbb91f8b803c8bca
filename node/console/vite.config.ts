import { readFileSync } from 'node:fs'

import { defineConfig, type Plugin } from 'vite'

/** Packages whose code is part of the console. */
const BUNDLED = ['preact', 'marked', 'uplot', '@noble/ed25519', '@noble/hashes']

/** Their licences want to go where their code goes. */
const licences: Plugin = {
  name: 'licences',
  generateBundle() {
    const source = BUNDLED.map((name) => {
      const { version, license } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, 'utf8'))
      const text = ['LICENSE', 'LICENSE.md'].flatMap((file) => {
        try {
          return [readFileSync(`node_modules/${name}/${file}`, 'utf8').trim()]
        } catch {
          return []
        }
      })
      return `${name} ${version}, ${license}\n\n${text[0]}\n`
    })
    this.emitFile({ type: 'asset', fileName: 'licences.txt', source: source.join('\n\n') })
  },
}

// The files keep their names, so that the node's table of them (src/api/http/console.rs) does not change with their contents; the
// node gives each an ETag.
export default defineConfig({
  base: '/console/',
  plugins: [licences],
  build: {
    outDir: process.env.CONSOLE_OUT ?? 'dist',
    emptyOutDir: true,
    target: 'es2022',
    modulePreload: false,
    assetsInlineLimit: 0,
    rollupOptions: {
      output: {
        entryFileNames: 'app.js',
        chunkFileNames: '[name].js',
        assetFileNames: 'app[extname]',
      },
    },
  },
  server: {
    proxy: Object.fromEntries(
      ['/api', '/v1', '/metrics', '/healthz', '/readyz', '/openapi.json'].map((path) => [path, 'http://127.0.0.1:52415']),
    ),
  },
})
