import { defineConfig } from '@playwright/test'

// One worker: the nodes of the tests share the machine's cores. The browser is the system's; nothing is downloaded.
export default defineConfig({
  testDir: 'browser',
  outputDir: process.env.CONSOLE_RESULTS ?? 'test-results',
  timeout: 120_000,
  workers: 1,
  fullyParallel: false,
  reporter: [['list']],
  use: {
    browserName: 'chromium',
    launchOptions: { executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu'] },
    viewport: { width: 1280, height: 850 },
    acceptDownloads: true,
  },
})
