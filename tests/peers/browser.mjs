// Looks at the guest's pages in Chromium. Its one argument is a JSON object:
//   node      the folder with playwright-core and axe-core
//   pages     the pages: [{ name, url, status, invite: whether it shows a pending invite's page }]
//   folder    where the picture `qr.png` of the page `account` goes
//   pictures  a folder for pictures of the main pages, or null
// Prints one line a check, and ends with 1 and what is wrong at the first that fails.
import { SCHEMES, must, mustBeAccessible, mustFitThumbs, mustNotScrollSideways, open, run, task } from "./chromium.mjs";

const { pages, folder, pictures } = task;
const WIDTHS = [320, 768, 1280];

/** Opens pages in a context of these options, and hands each to `look`; whatever the browser complains of is an error. */
async function each(of, options, look) {
  let expected = null;
  const isExpected = (url) => url === expected?.url && expected.status >= 400;
  const { context, page, complaints } = await open(options, () => new URL(expected.url).origin, isExpected);
  page.on("requestfailed", (request) => complaints.push(`failed: ${request.url()}`));
  for (const one of of) {
    expected = one;
    const response = await page.goto(one.url);
    must(response.status() === one.status, `${one.name} has status ${response.status()}`);
    await look(page, one);
    must(complaints.length === 0, `${one.name}: ${complaints.join("; ")}`);
  }
  await context.close();
}

async function atEachWidth(page, one) {
  for (const width of WIDTHS) {
    await page.setViewportSize({ width, height: 800 });
    await mustNotScrollSideways(page, one.name);
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
  await each(pages, { width: 320, height: 400, deviceScaleFactor: 2 }, (page, one) => mustNotScrollSideways(page, one.name));
  await each(pages, { width: 640, bypassCSP: true }, async (page, one) => {
    await page.addStyleTag({ content: ":root { font-size: 200% !important }" });
    await page.evaluate(() => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
    await mustNotScrollSideways(page, one.name);
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
      await mustBeAccessible(page, `${one.name}, ${colorScheme}`);
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
    await mustFitThumbs(page, one.name);
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
    await mustNotScrollSideways(page, one.name);
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

await run([layout, zoom, accessibility, keyboard, targets, print, code, ...(pictures ? [pictured] : [])]);
