// Every flow of the console in a browser, against real nodes on this machine.

import { readFileSync, writeFileSync } from 'node:fs'

import { accessible, type Cluster, expect, hasModel, MODEL, needModel, type Node, picture, test } from './nodes'

let one: Node
let two: Node

async function pair(cluster: Cluster): Promise<void> {
  const serves = hasModel ? ['--model', MODEL, '--split', '--force-master'] : []
  one = await cluster.node('one', { model: true, args: [...serves, '--audit', '0'] })
  two = await cluster.node('two', { args: ['--peer', one.address] })
}

test.describe.configure({ mode: 'serial' })

test.beforeAll(async ({ cluster }) => pair(cluster))

test('the pool is shown with its nodes, links and master', async ({ page }) => {
  await page.goto(one.url)
  await expect(page).toHaveTitle('Topology · Pangea')
  const nodes = page.locator('.node')
  await expect(nodes).toHaveCount(2)
  await expect(nodes.filter({ hasText: 'this node' })).toContainText('one')
  await expect(nodes.filter({ hasText: 'two' })).toContainText('Trust')
  // Nothing that it computed was checked yet, which is no reason to distrust it.
  await expect(nodes.filter({ hasText: 'two' }).locator('.fact', { hasText: 'Trust' }).locator('dd')).toHaveText('new')
  await expect(page.getByRole('img', { name: /Graph of 2 nodes/ })).toBeVisible()
  await expect(page.locator('.summary')).toContainText('2 nodes, 1 connection, master one')
  const links = page.getByRole('region', { name: 'Links' })
  await expect(links.getByRole('row')).toHaveCount(3)
  await expect(links).toContainText('tcp')
  if (hasModel) await expect(nodes.filter({ hasText: 'two' }).locator('.badge.good')).toHaveText('ready', { timeout: 40_000 })
  await accessible(page)
  await picture(page, 'topology-light')
  await page.emulateMedia({ colorScheme: 'dark' })
  await picture(page, 'topology-dark')
})

test('a chat is answered by both nodes, with its verdict, its receipt and its tokens', async ({ page }) => {
  needModel()
  await page.goto(`${one.url}/#/chat`)
  await expect(page.locator('.servers .lit')).toHaveCount(2, { timeout: 40_000 })
  await page.getByText('Settings').click()
  await page.getByLabel('Temperature').fill('0')
  await page.getByLabel('Longest answer in tokens').fill('8')
  await page.getByText('Settings').click()
  await page.getByLabel('Message', { exact: true }).fill('Write a list of three colours, in **bold**.')
  await page.keyboard.press('Enter')
  const answer = page.getByRole('article', { name: /Answer/ }).last()
  await expect(answer.locator('.about .badge').first()).toHaveText(/unchecked|audited/, { timeout: 40_000 })
  await expect(answer).toContainText(/one \(layers 0–\d+\) → two|two \(layers 0–\d+\) → one/)
  await expect(answer).toContainText(/\b8 tokens(?!\/)/)
  await expect(answer).toContainText('confidence')
  await expect(answer).toContainText('Cut off after 8 tokens')
  await answer.getByRole('button', { name: 'Tokens' }).click()
  await expect(answer.locator('.tokens .token')).toHaveCount(8)
  await expect(answer.locator('.tokens .token').nth(3)).toHaveAttribute('title', /%, after/)
  await accessible(page)
  await picture(page, 'chat')
  const text = (await answer.locator('.tokens').textContent()) ?? ''

  await answer.getByRole('button', { name: 'Regenerate' }).click()
  const again = page.getByRole('article', { name: /Answer/ }).last()
  await expect(again.locator('.about')).toContainText(/\b8 tokens(?!\/)/, { timeout: 40_000 })
  await again.getByRole('button', { name: 'Tokens', pressed: true }).waitFor()
  expect(await again.locator('.tokens').textContent()).toBe(text)

  await page.waitForFunction(() => localStorage.getItem('pangea.chats')?.includes('"completion_tokens":8'))
  await page.reload()
  await expect(page.getByRole('article', { name: /Answer/ })).toHaveCount(1)
  await expect(page.getByRole('article', { name: /Answer/ })).toContainText(/\b8 tokens(?!\/)/)
})

test('a receipt is checked by the browser and computed again by the node', async ({ page }) => {
  needModel()
  await page.goto(`${one.url}/#/activity/receipts`)
  const first = page.getByRole('region', { name: 'Receipts' }).getByRole('link').first()
  await first.click()
  await expect(page.getByText('The chain of signatures holds.')).toBeVisible()
  await expect(page.locator('.mark.good')).toHaveCount(9)
  await page.getByRole('button', { name: 'Compute the answer again' }).click()
  await expect(page.getByText('Every stage gave what the model gives.')).toBeVisible({ timeout: 40_000 })
  await expect(page.locator('.facts .badge')).toHaveText('audited')
  await accessible(page)
  await picture(page, 'receipt')
})

test('an answer is stopped, and what was written stays', async ({ page }) => {
  needModel()
  await page.goto(`${one.url}/#/chat`)
  await page.getByLabel('Message', { exact: true }).fill('Tell a very long story about the sea.')
  await page.getByRole('button', { name: 'Send' }).click()
  const answer = page.getByRole('article', { name: /Answer/ }).last()
  await expect(answer.locator('.markdown')).not.toBeEmpty({ timeout: 40_000 })
  await page.getByRole('button', { name: 'Stop' }).click()
  await expect(answer).toContainText(/Stopped after \d+ tokens?\./)
  await expect(page.getByRole('button', { name: 'Send' })).toBeVisible()
  await expect.poll(async () => (await (await fetch(`${one.url}/api/pangea/jobs`)).json())[0].state).toBe('cancelled')
})

test('on a phone no view is wider than the page', async ({ page }) => {
  await page.setViewportSize({ width: 360, height: 740 })
  for (const view of ['topology', 'chat', 'models', 'products', 'activity/jobs', 'activity/events', 'activity/receipts', 'metrics']) {
    await page.goto(`${one.url}/#/${view}`)
    await expect(page.getByRole('navigation', { name: 'Views' }).getByRole('link')).toHaveCount(6)
    await expect(page.getByRole('main').locator('h2, .chat').first()).toBeAttached({ timeout: 15_000 })
    expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), view).toBeLessThanOrEqual(0)
    await accessible(page, ['dark'])
    await picture(page, `phone-${view.replace('/', '-')}`)
  }
})

test('the keyboard reaches the content, the views and what they offer', async ({ page }) => {
  await page.goto(one.url)
  await expect(page.locator('.node')).toHaveCount(2)
  await page.keyboard.press('Tab')
  await expect(page.getByRole('link', { name: 'Skip to the content' })).toBeFocused()
  await page.keyboard.press('Enter')
  await expect(page.getByRole('main')).toBeFocused()
  await page.keyboard.press('Tab')
  // The way to the chat comes first.
  await expect(page.getByRole('region', { name: /^Chat/ }).locator(':focus')).toHaveCount(1)
  await page.keyboard.press('Tab')
  await expect(page.getByLabel('Light up')).toBeFocused()
  await page.getByRole('link', { name: 'Products' }).focus()
  await page.keyboard.press('Enter')
  await expect(page).toHaveTitle('Products · Pangea')
  await page.getByLabel('m', { exact: true }).focus()
  const reached: string[] = []
  for (let press = 0; press < 6; press += 1) {
    await page.keyboard.press('Tab')
    reached.push(await page.evaluate(() => document.activeElement?.parentElement?.firstChild?.textContent?.trim() ?? ''))
  }
  expect(reached.slice(0, 4)).toEqual(['k', 'n', 'dtype', 'seed'])
})

test('jobs and events can be filtered', async ({ page }) => {
  await page.goto(`${one.url}/#/activity/jobs`)
  if (hasModel) {
    const rows = page.getByRole('region', { name: 'Jobs' }).getByRole('row')
    await expect(rows.filter({ hasText: 'cancelled' })).toHaveCount(1)
    await page.getByLabel('Filter jobs').fill('cancelled generation')
    await expect(rows).toHaveCount(2)
  }
  await accessible(page)
  await picture(page, 'jobs')
  await page.getByRole('link', { name: 'Events' }).click()
  await expect(page.getByText('live', { exact: true }).first()).toBeVisible()
  await accessible(page)
})

test('two sizes are multiplied, tiles land on nodes, and the product can be saved', async ({ page }) => {
  await page.goto(`${one.url}/#/products`)
  for (const [side, size] of [['m', '1536'], ['k', '1024'], ['n', '1536']] as const) {
    await page.getByLabel(side, { exact: true }).fill(size)
  }
  await page.getByLabel('dtype').selectOption('i8')
  await page.getByLabel('place').selectOption('remote')
  await page.getByRole('button', { name: 'Multiply random matrices' }).click()
  const save = page.getByRole('link', { name: /Save product.npy/ })
  await expect(save).toBeVisible({ timeout: 40_000 })
  await expect(page.locator('.card .badge', { hasText: 'verified' })).toBeVisible()
  await expect(page.getByRole('list', { name: 'Nodes' })).toContainText('two')
  const tiles = await page.locator('.tiles rect').count()
  expect(tiles).toBeGreaterThan(0)
  await expect(page.getByText(`${tiles} of ${tiles} tile`)).toBeVisible()
  const downloading = page.waitForEvent('download')
  await save.click()
  const bytes = readFileSync(await (await downloading).path())
  expect(bytes.subarray(1, 6).toString()).toBe('NUMPY')
  expect(bytes.length).toBe(128 + 1536 * 1536 * 4)
  await accessible(page)
  await picture(page, 'products')
})

/** A `.npy` file of 64-bit floats. */
function npy(rows: number, cols: number, elements: number[]): Buffer {
  const dict = `{'descr': '<f8', 'fortran_order': False, 'shape': (${rows}, ${cols}), }`
  const header = Buffer.alloc(128, 0x20)
  header.write('\x93NUMPY\x01\x00', 0, 'latin1')
  header.writeUInt16LE(118, 8)
  header.write(dict, 10)
  header[127] = 10
  return Buffer.concat([header, Buffer.from(new Float64Array(elements).buffer)])
}

test('two files are multiplied', async ({ page }, info) => {
  const [a, b] = [info.outputPath('a.npy'), info.outputPath('b.npy')]
  writeFileSync(a, npy(2, 3, [1, 2, 3, 4, 5, 6]))
  writeFileSync(b, npy(3, 1, [1, 10, 100]))
  await page.goto(`${one.url}/#/products`)
  await page.getByLabel('A', { exact: true }).setInputFiles(a)
  await page.getByLabel('B', { exact: true }).setInputFiles(b)
  await page.getByRole('button', { name: 'Multiply files' }).click()
  const save = page.getByRole('link', { name: /Save product.npy/ })
  await expect(save).toBeVisible()
  const downloading = page.waitForEvent('download')
  await save.click()
  const bytes = readFileSync(await (await downloading).path())
  expect([bytes.readDoubleLE(128), bytes.readDoubleLE(136)]).toEqual([321, 654])
  // Files that do not fit are refused with the reason.
  await page.getByLabel('B', { exact: true }).setInputFiles(a)
  await page.getByRole('button', { name: 'Multiply files' }).click()
  await expect(page.getByRole('alert')).toContainText('3')
})

test('models: placement before loading, loading, dropping, downloads that go on', async ({ page }) => {
  needModel()
  await page.goto(`${one.url}/#/models`)
  const served = page.locator('li.card', { hasText: MODEL })
  await expect(served.locator('.badge').first()).toHaveText('ready')
  await served.getByRole('button', { name: 'Placement' }).click()
  await expect(served.getByRole('group', { name: /Placements/ })).toContainText('→')
  await accessible(page)
  await picture(page, 'models')
  await served.getByRole('button', { name: 'Drop' }).click()
  await served.getByRole('button', { name: /Drop .* in the whole pool/ }).click()
  await expect(served).toHaveCount(0)
  const disk = page.locator('section', { has: page.getByRole('heading', { name: 'On disk' }) }).locator('li')
  await disk.getByRole('button', { name: 'Placement' }).click()
  await expect(disk.getByRole('group', { name: /Placements/ })).toContainText('best')
  await disk.getByRole('button', { name: 'Load' }).click()
  await expect(served.locator('.badge').first()).toHaveText('ready', { timeout: 40_000 })
  await page.getByLabel(/A name, hf:/).fill('https://127.0.0.1:9/nothing.gguf')
  await page.getByRole('button', { name: 'Download' }).click()
  await expect(page.getByRole('button', { name: 'Resume' })).toBeVisible({ timeout: 40_000 })
  await page.getByLabel(/A name, hf:/).fill('/etc/passwd')
  await page.getByRole('button', { name: 'Download' }).click()
  await expect(page.getByText('name a model by its short name')).toBeVisible()
})

test('metrics are drawn', async ({ page }) => {
  await page.goto(`${one.url}/#/metrics`)
  await expect(page.getByRole('heading', { name: 'Memory by lease' })).toBeVisible({ timeout: 15_000 })
  await expect(page.locator('.chart canvas').first()).toBeVisible()
  await accessible(page)
  await picture(page, 'metrics')
})

test('a stranger is shown, compared by digits and accepted; a device is invited', async ({ page, cluster }) => {
  const three = await cluster.node('three', { pool: 'own', args: ['--peer', one.address] })
  await page.goto(one.url)
  const stranger = page.locator('.stranger', { hasText: 'three' })
  await stranger.getByRole('button', { name: 'Compare digits with three' }).click({ timeout: 20_000 })
  const digits = stranger.locator('.pin')
  await expect(digits).toHaveText(/^\d{3} \d{3}$/, { timeout: 20_000 })
  const shown = (await digits.textContent()) ?? ''
  await expect.poll(() => three.log()).toContain(shown)
  await accessible(page)
  await picture(page, 'stranger')
  await stranger.getByRole('button', { name: /accept three/ }).click()
  await expect(stranger).toHaveCount(0)
  await page.getByRole('button', { name: 'Invite a device' }).click()
  await expect(page.getByText(/PIN \d/)).toBeVisible()
  await expect(page.getByRole('img', { name: /QR code/ })).toBeVisible()
  await expect(page.locator('#token')).toHaveValue(/^pangea node --join \S+$/)
  await accessible(page)
  await picture(page, 'invitation')
})

test('a node that is gone is told, and the console says when its own node is gone', async ({ page }) => {
  await page.goto(`${one.url}/#/activity/events`)
  await expect(page.getByText('live', { exact: true }).first()).toBeVisible()
  // The first report is what later ones are compared with.
  await page.waitForResponse(/api\/pangea\/pool/)
  await page.waitForResponse(/api\/pangea\/pool/)
  await two.stop()
  await expect(page.locator('.log')).toContainText(/two is gone|Lost the connection to two/, { timeout: 20_000 })
  await page.getByLabel('Kind').selectOption('job')
  await expect(page.locator('.log')).not.toContainText('two')
  await one.stop()
  await expect(page.getByRole('alert')).toContainText('does not answer', { timeout: 20_000 })
})

test('a node with a key asks for it and takes no other', async ({ page, cluster }) => {
  const keyed = await cluster.node('keyed', { pool: 'own', env: { PANGEA_API_KEY: 'open-sesame' } })
  await page.goto(`${keyed.url}/#/topology`)
  await expect(page.getByLabel('API key')).toBeVisible()
  await accessible(page)
  await picture(page, 'login')
  await page.getByLabel('API key').fill('guess')
  await page.getByRole('button', { name: 'Log in' }).click()
  await expect(page.getByRole('alert')).toHaveText('This key is not accepted.')
  await page.getByLabel('API key').fill('open-sesame')
  await page.keyboard.press('Enter')
  await expect(page.locator('.node', { hasText: 'keyed' })).toBeVisible()
  await expect(page.getByText('live', { exact: true })).toBeVisible()
  await page.getByRole('button', { name: 'Log out' }).click()
  await expect(page.getByLabel('API key')).toBeVisible()
  expect(keyed.log()).not.toContain('open-sesame')
})
