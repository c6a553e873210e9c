// Looks at the guest's pages in Chromium. Its one argument is a JSON object:
//   node      the folder with playwright-core and axe-core
//   pages     the pages: [{ name, url, status, invite: whether it shows a pending invite's page }]
//   folder    where the picture `qr.png` of the page `account` goes
//   pictures  a folder for pictures of the main pages, or null
// Prints one line a check, and ends with 1 and what is wrong at the first that fails.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const { node, pages, folder, pictures } = JSON.parse(process.argv[2]);
const require = createRequire(`${node}/package.json`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const WIDTHS = [320, 768, 1280];
const SCHEMES = ["light", "dark"];
const AGENTS = {
  android: "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/125.0 Mobile Safari/537.36",
  linux: "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/125.0 Safari/537.36",
};

class Wrong extends Error {}

function must(good, what) {
  if (!good) throw new Wrong(what);
}

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});

/** Opens pages in a context of these options, and hands each to `look`; whatever the browser complains of is an error. */
async function each(of, options, look) {
  const { agent = "android", height = 800, width = 1280, ...rest } = options;
  const context = await browser.newContext({
    viewport: { width, height },
    userAgent: AGENTS[agent],
    extraHTTPHeaders: { "Sec-CH-UA-Platform": `"${agent}"` },
    ...rest,
  });
  const page = await context.newPage();
  const complaints = [];
  let expected = null;
  page.on("console", (message) => {
    // Chromium reports the status of the very page, which is as it should be, as an error of its own.
    const status = message.text().startsWith("Failed to load resource") && message.location().url === expected?.url && expected.status >= 400;
    if (["error", "warning"].includes(message.type()) && !status) complaints.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => complaints.push(`script: ${error}`));
  page.on("requestfailed", (request) => complaints.push(`failed: ${request.url()}`));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(expected.url).origin) complaints.push(`third party: ${request.url()}`);
  });
  for (const one of of) {
    expected = one;
    const response = await page.goto(one.url);
    must(response.status() === one.status, `${one.name} has status ${response.status()}`);
    await look(page, one);
    must(complaints.length === 0, `${one.name}: ${complaints.join("; ")}`);
  }
  await context.close();
}

async function mustNotScrollSideways(page, one) {
  const { scroll, inner } = await page.evaluate(() => ({ scroll: document.documentElement.scrollWidth, inner: innerWidth }));
  must(scroll <= inner, `${one.name} is ${scroll} px wide in a window of ${inner}`);
}

async function atEachWidth(page, one) {
  for (const width of WIDTHS) {
    await page.setViewportSize({ width, height: 800 });
    await mustNotScrollSideways(page, one);
  }
}

async function layout() {
  for (const javaScriptEnabled of [true, false]) {
    for (const colorScheme of SCHEMES) {
      await each(pages, { colorScheme, javaScriptEnabled }, atEachWidth);
      console.log(`layout: ${pages.length} pages at ${WIDTHS.join(", ")} px, ${colorScheme}, JavaScript ${javaScriptEnabled ? "on" : "off"}`);
    }
  }
  await each(pages.filter((one) => one.invite), { agent: "linux" }, atEachWidth);
  console.log("layout: the pages for Linux");
}

/** What 200 % of zoom does to a window: half the width in CSS pixels. And text alone twice as large. */
async function zoom() {
  await each(pages, { width: 320, height: 400, deviceScaleFactor: 2 }, mustNotScrollSideways);
  await each(pages, { width: 640, bypassCSP: true }, async (page, one) => {
    await page.addStyleTag({ content: ":root { font-size: 200% !important }" });
    await page.evaluate(() => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
    await mustNotScrollSideways(page, one);
    const cut = await page.evaluate(() => [...document.querySelectorAll("main *")]
      .filter((e) => !e.closest("svg, .hidden") && e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1)
      .map((e) => e.outerHTML.slice(0, 80)));
    must(cut.length === 0, `${one.name} at 200 % runs out of the window: ${cut[0]}`);
  });
  console.log("zoom: 200 % of a window of 640 px, and text of twice the size");
}

async function accessibility() {
  for (const [agent, colorScheme] of [["android", "light"], ["android", "dark"], ["linux", "dark"]]) {
    await each(pages, { width: agent === "android" ? 360 : 1280, colorScheme, agent, bypassCSP: true }, async (page, one) => {
      await page.evaluate(() => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
      await page.evaluate(axe);
      const { violations, passes } = await page.evaluate(() => globalThis.axe.run(document));
      must(passes.length > 10, `axe-core looked at ${passes.length} rules of ${one.name} only`);
      const bad = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
      const lines = bad.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((n) => `${n.html} ${n.failureSummary}`).join(" | ")}`);
      must(bad.length === 0, `${one.name}, ${colorScheme}: ${lines.join("; ")}`);
      for (const { id, nodes } of violations) console.log(`  (lesser: ${one.name}: ${id}: ${nodes[0].html.slice(0, 100)})`);
    });
    console.log(`axe-core: ${pages.length} pages, ${colorScheme}, for ${agent}`);
  }
}

/** Where the focus is: an address, a field, or the summary, and whether it can be seen. */
function focused() {
  const e = document.activeElement;
  if (e === document.body || e === null) return null;
  const style = getComputedStyle(e);
  const box = e.getBoundingClientRect();
  return {
    name: e.getAttribute("href") ?? (e.id || e.tagName),
    seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && box.bottom > 0 && box.top < innerHeight,
  };
}

async function keyboard() {
  await each(pages, { width: 360 }, async (page, one) => {
    const wanted = (inside) => page.evaluate((inside) => [...document.querySelectorAll("a[href], summary, input:not([type=hidden]), button")]
      .filter((e) => inside || e.tagName === "SUMMARY" || !e.closest("details:not([open])"))
      .map((e) => e.getAttribute("href") ?? (e.id || e.tagName)), inside);
    /** Presses Tab until the focus leaves the page or is back at its first link. */
    const walk = async (most) => {
      const reached = [];
      for (let step = 0; step <= most; step++) {
        await page.keyboard.press("Tab");
        const at = await page.evaluate(focused);
        if (at === null || (step === most && at.name === all[0])) break;
        must(at.seen, `${one.name}: the focus on ${at.name} can't be seen`);
        reached.push(at.name);
      }
      return reached;
    };
    const equal = (a, b) => a.length === b.length && a.every((name, i) => name === b[i]);
    let all = await wanted(false);
    const reached = await walk(all.length);
    must(equal(reached, all), `${one.name}: Tab reaches ${reached} of ${all}`);
    if (!all.includes("SUMMARY")) return;
    await page.reload();
    await page.locator("summary").focus();
    await page.keyboard.press("Enter");
    must(await page.evaluate(() => document.querySelector("details").open), `${one.name}: Enter does not open the other apps`);
    all = await wanted(true);
    const rest = all.slice(all.indexOf("SUMMARY") + 1);
    const more = await walk(rest.length);
    must(equal(more, rest), `${one.name}: with the other apps open, Tab reaches ${more} of ${rest}`);
  });
  console.log("keyboard: Tab reaches every link and the summary in their order, Enter opens it, and the focus is seen");
}

async function targets() {
  await each(pages, { width: 320 }, async (page, one) => {
    await page.evaluate(() => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
    const small = await page.evaluate(() => [...document.querySelectorAll("a.get, a.button, button, summary, .field > input, label.show")]
      .map((e) => ({ text: e.textContent, box: e.getBoundingClientRect() }))
      .filter(({ box }) => box.height < 43.99 || box.width < 43.99).map(({ text, box }) => `${text}: ${box.width} x ${box.height}`));
    must(small.length === 0, `${one.name}: too small for a thumb: ${small.join("; ")}`);
  });
  console.log("targets: every button and the summary have 44 px at least");
}

async function print() {
  await each(pages.filter((one) => one.invite), { width: 700 }, async (page, one) => {
    await page.emulateMedia({ media: "print" });
    must(await page.locator("svg.code").isVisible(), `${one.name}: no QR code in print`);
    const address = page.locator(".address");
    must(await address.isVisible() && (await address.textContent()).endsWith(`/invite${new URL(one.url).search}`), `${one.name}: no address in print`);
    must(!(await page.locator("a.button").isVisible()), `${one.name}: a button in print`);
    await mustNotScrollSideways(page, one);
    if (pictures && one.name === "account") await page.screenshot({ path: `${pictures}/print.png`, fullPage: true });
    await page.emulateMedia({ media: "screen" });
  });
  console.log("print: the QR code and the address are on paper, and no button");
}

async function code() {
  await each(pages.filter((one) => one.name === "account"), { width: 1280, colorScheme: "dark" }, async (page) => {
    must(await page.locator("svg.code").isVisible(), "no QR code at 1280 px");
    await page.screenshot({ path: `${folder}/qr.png`, fullPage: true });
  });
  await each(pages.filter((one) => one.name === "account-in-apps"), { width: 360, agent: "linux" }, async (page) => {
    must(await page.locator("svg.code").isVisible(), "no QR code where a phone is needed");
  });
  console.log("QR code: a picture for zbarimg");
}

async function pictured() {
  for (const [look, options] of Object.entries({
    phone: { width: 360 }, "phone-dark": { width: 360, colorScheme: "dark" }, wide: { width: 1280 }, linux: { width: 1280, agent: "linux" },
  })) {
    await each(pages, options, (page, one) => page.screenshot({ path: `${pictures}/${one.name}-${look}.png`, fullPage: true }));
  }
  console.log(`pictures: in ${pictures}`);
}

try {
  for (const check of [layout, zoom, accessibility, keyboard, targets, print, code, ...(pictures ? [pictured] : [])]) await check();
} catch (error) {
  console.error(error instanceof Wrong ? `wrong: ${error.message}` : error);
  process.exitCode = 1;
} finally {
  await browser.close();
}
