import { defineConfig } from 'vite'

// The files keep their names, so that the node's table of them (src/api/http/console.rs) does not change with their contents; the
// node gives each an ETag.
export default defineConfig({
  base: '/console/',
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
