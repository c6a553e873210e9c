// What the scripts that drive Chromium share. Their one argument is a JSON object; here `node` is read from it, the folder
// with playwright-core and axe-core.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

export const task = JSON.parse(process.argv[2]);
const require = createRequire(`${task.node}/package.json`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

export const SCHEMES = ["light", "dark"];
const AGENTS = {
  android: "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/125.0 Mobile Safari/537.36",
  linux: "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/125.0 Safari/537.36",
};
const BUTTONS = "a.get, a.button, button, summary, .field > input, label.show:not([hidden])";

class Wrong extends Error {}

export function must(good, what) {
  if (!good) throw new Wrong(what);
}

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});

/** Opens a page in a context of these options. What the browser complains of is collected, as is what leaves `origin()`. */
export async function open(options, origin, hasStatus) {
  const { agent = "android", height = 800, width = 1280, ...rest } = options;
  const context = await browser.newContext({
    viewport: { width, height },
    userAgent: AGENTS[agent],
    extraHTTPHeaders: { "Sec-CH-UA-Platform": `"${agent}"` },
    ...rest,
  });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => {
    // Chromium reports the status of the very page, which is as it should be, as an error of its own.
    const status = message.text().startsWith("Failed to load resource") && hasStatus(message.location().url);
    if (["error", "warning"].includes(message.type()) && !status) complaints.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => complaints.push(`script: ${error}`));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== origin()) complaints.push(`third party: ${request.url()}`);
  });
  return { context, page, complaints };
}

export async function mustNotScrollSideways(page, name) {
  const { scroll, inner } = await page.evaluate(() => ({ scroll: document.documentElement.scrollWidth, inner: innerWidth }));
  must(scroll <= inner, `${name} is ${scroll} px wide in a window of ${inner}`);
}

export async function mustFitThumbs(page, name) {
  const small = await page.evaluate((buttons) => [...document.querySelectorAll(buttons)]
    .map((e) => ({ text: e.textContent, box: e.getBoundingClientRect() }))
    .filter(({ box }) => box.height < 43.99 || box.width < 43.99).map(({ text, box }) => `${text}: ${box.width} x ${box.height}`), BUTTONS);
  must(small.length === 0, `${name}: too small for a thumb: ${small.join("; ")}`);
}

export async function mustBeAccessible(page, name) {
  await page.evaluate(axe);
  const { violations, passes } = await page.evaluate(() => globalThis.axe.run(document));
  must(passes.length > 10, `axe-core looked at ${passes.length} rules of ${name} only`);
  const bad = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  const lines = bad.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((n) => `${n.html} ${n.failureSummary}`).join(" | ")}`);
  must(bad.length === 0, `${name}: ${lines.join("; ")}`);
  for (const { id, nodes } of violations) console.log(`  (lesser: ${name}: ${id}: ${nodes[0].html.slice(0, 100)})`);
}

/** Does one check after the other, and ends with 1 and what is wrong at the first that fails. */
export async function run(checks) {
  try {
    for (const check of checks) await check();
  } catch (error) {
    console.error(error instanceof Wrong ? `wrong: ${error.message}` : error);
    process.exitCode = 1;
  } finally {
    await browser.close();
  }
}
