// Makes accounts in Chromium as guests do, with the real XMPP server behind the form. Its one argument is a JSON object:
//   node      the folder with playwright-core and axe-core
//   base      the address of the server
//   taken     a name that is taken
//   tokens    of invites, by what they are for
//   long      whether the host has a long name and a web client, and only that is to be looked at
//   made      the file for the accounts that were made: [[name, password]]
//   pictures  a folder for pictures of the pages, or null
import { writeFileSync } from "node:fs";
import { SCHEMES, must, mustBeAccessible, mustFitThumbs, mustNotScrollSideways, open, run, task } from "./chromium.mjs";

const { base, taken, tokens, long, pictures } = task;
const PASSWORD = "four words <in> a row & \"more\"";
const made = [];

/** A guest's window; whatever the browser complains of in it is an error. */
async function guest(options, visit) {
  const { page, context, complaints } = await open(options, () => new URL(base).origin, (url) => url.startsWith(`${base}/register?t=`));
  await visit(page, options.javaScriptEnabled !== false);
  must(complaints.length === 0, complaints.join("; "));
  await context.close();
}

/** Does what leads to another page, and expects this status of it. */
async function leads(page, status, action) {
  const [response] = await Promise.all([page.waitForNavigation(), action()]);
  must(response.status() === status, `${page.url()} has status ${response.status()} instead of ${status}`);
  return response;
}

const submit = (page, status) => leads(page, status, () => page.click("button"));

async function fill(page, user, password) {
  await page.fill("#user", user);
  await page.fill("#password", password);
}

/** Sends what the browser itself would hold back. */
async function force(page, status) {
  await page.evaluate(() => { document.forms[0].noValidate = true; });
  await submit(page, status);
}

/** What has to hold for every page on the way. */
async function look(page, name, javaScript = true) {
  const html = await page.content();
  must(!html.includes("four words") && !html.includes("short1"), `${name} shows the password`);
  const size = page.viewportSize();
  await page.setViewportSize({ width: 320, height: 800 });
  for (const textSize of ["", "200%"]) {
    await page.evaluate((size) => document.documentElement.style.setProperty("font-size", size, "important"), textSize);
    await mustNotScrollSideways(page, `${name} ${textSize}`);
    if (textSize === "") await mustFitThumbs(page, name);
  }
  await page.evaluate(() => document.documentElement.style.removeProperty("font-size"));
  for (const colorScheme of javaScript ? SCHEMES : []) {
    await page.emulateMedia({ colorScheme });
    await mustBeAccessible(page, `${name}, ${colorScheme}`);
    for (const width of pictures ? [360, 1000] : []) {
      await page.setViewportSize({ width, height: 800 });
      await page.screenshot({ path: `${pictures}/${name}-${width}-${colorScheme}.png`, fullPage: true });
    }
  }
  await page.setViewportSize(size);
}

/** The form has its errors beside these fields, the first of which has the focus. */
async function mustBlame(page, fields, user) {
  for (const field of ["user", "password"]) {
    const input = page.locator(`#${field}`);
    const wrong = page.locator(`#${field}-wrong`);
    const described = (await input.getAttribute("aria-describedby")).split(" ");
    const is = fields.includes(field);
    must(await wrong.count() === Number(is), `${field}: ${is ? "no error" : "an error"} beside it`);
    must(await input.getAttribute("aria-invalid") === (is ? "true" : null), `${field}: aria-invalid`);
    must(described.includes(`${field}-wrong`) === is, `${field} is described by ${described}`);
    for (const id of described) must(await page.locator(`#${id}`).isVisible(), `#${id} is not there`);
  }
  const focus = await page.evaluate(() => document.activeElement.id);
  must(focus === (fields[0] ?? ""), `the focus is on ${focus}`);
  must(await page.inputValue("#user") === user, `the name is ${await page.inputValue("#user")} now`);
  must(await page.inputValue("#password") === "", "the password is still there");
  must(await page.isEnabled("button"), "the button is not enabled");
}

/** The page says that the account is there, and no link leads back to the invite. */
async function mustBeDone(page, user, token) {
  const address = await page.textContent(".jid");
  must(address === `${user}@example.com`, `the address is ${address}`);
  const links = await page.evaluate(() => [...document.links].map((link) => link.getAttribute("href")));
  must(links.every((link) => !link.includes(token) && !link.includes("invite")), `links to a used invite: ${links}`);
  if (!made.some(([name]) => name === user)) made.push([user, PASSWORD]);
  return links;
}

const form = (page, token) => page.goto(`${base}/register?t=${token}`);

async function wholeWay(page, javaScript, agent) {
  const token = tokens[`${agent} ${javaScript}`];
  const user = `${agent}${javaScript ? "" : "-plain"}`;
  await page.goto(`${base}/invite?${token}`);
  await leads(page, 200, () => page.getByRole("link", { name: agent === "linux" ? "Make my account here" : "in the browser" }).click());
  for (const [field, complete] of [["user", "username"], ["password", "new-password"]]) {
    must(await page.getAttribute(`#${field}`, "autocomplete") === complete, `autocomplete of ${field}`);
  }
  must(await page.isVisible("#show") === javaScript, "the checkbox is there if and only if it works");
  await look(page, "form", javaScript);

  const url = page.url();
  await page.click("button");
  must(page.url() === url && await page.evaluate(() => document.activeElement.id) === "user", "an empty form was sent");
  await force(page, 400);
  await mustBlame(page, ["user", "password"], "");
  await look(page, "form-empty", javaScript);

  await page.goBack();
  must(await page.isEnabled("button"), "the button is not enabled after going back");
  await fill(page, taken, PASSWORD);
  await submit(page, 409);
  await mustBlame(page, ["user"], taken);
  await look(page, "form-taken", javaScript);

  await fill(page, user, "short1");
  await force(page, 400);
  await mustBlame(page, ["password"], user);
  await fill(page, "anton", `${PASSWORD} ANTON`);
  await submit(page, 400);
  await mustBlame(page, ["password"], "anton");
  await look(page, "form-password", javaScript);

  if (javaScript) {
    const type = () => page.getAttribute("#password", "type");
    await page.check("#show");
    must(await type() === "text", "the password is not shown");
    await page.uncheck("#show");
    must(await type() === "password", "the password is still shown");
    await page.check("#show");
    await page.evaluate(() => document.forms[0].addEventListener("submit", () => {
      sessionStorage.setItem("type", document.getElementById("password").type);
    }));
    await fill(page, "a b", PASSWORD);
    await submit(page, 400);
    must(await page.evaluate(() => sessionStorage.getItem("type")) === "password", "the password is sent while it is shown");
    await mustBlame(page, ["user"], "a b");
  }

  await form(page, token);
  for (const [field, text] of [["user", user], ["password", PASSWORD]]) {
    await page.keyboard.press("Tab");
    must(await page.evaluate(() => document.activeElement.id) === field, `Tab does not reach ${field}`);
    await page.keyboard.type(text);
  }
  await leads(page, 200, () => page.keyboard.press("Enter"));
  await mustBeDone(page, user, token);
  await look(page, `done-${agent}`, javaScript);
  const again = await leads(page, 200, () => page.reload());
  must(again.request().method() === "POST", "the form was not sent again");
  await mustBeDone(page, user, token);
}

async function wholeWays() {
  for (const [agent, width] of [["android", 360], ["linux", 1280]]) {
    for (const javaScriptEnabled of [true, false]) {
      await guest({ agent, width, javaScriptEnabled }, (page) => wholeWay(page, javaScriptEnabled, agent));
      console.log(`the whole way: ${agent}, JavaScript ${javaScriptEnabled ? "on" : "off"}`);
    }
  }
}

async function withAnApp() {
  await guest({ agent: "linux" }, async (page) => {
    await page.goto(`${base}/invite/setup/dino?${tokens.dino}`);
    await leads(page, 200, () => page.getByRole("link", { name: "Make my account here" }).click());
    await fill(page, "two words", PASSWORD);
    await submit(page, 400);
    await fill(page, "dina", PASSWORD);
    await submit(page, 200);
    const links = await mustBeDone(page, "dina", tokens.dino);
    must(links.length === 1 && links[0].startsWith("https://dino.im/"), `the links are ${links}`);
    must((await page.textContent("#install")).endsWith("Install Dino"), "no step for the app");
    must((await page.textContent("section:last-of-type")).includes("Open Dino."), "no step to log in to the app");
    await look(page, "done-app");
  });
  console.log("with an app: it is kept through an error, and the last page speaks of it");
}

async function fixedNames() {
  for (const [kind, user] of [["name", "bob"], ["reset", taken]]) {
    await guest({ width: 360 }, async (page) => {
      await form(page, tokens[kind]);
      must(await page.inputValue("#user") === user, `${kind}: the name is not there`);
      must(await page.getAttribute("#user", "readonly") !== null, `${kind}: the name can be changed`);
      const label = await page.textContent("label[for=password]");
      must(label === (kind === "reset" ? "New password" : "Password"), `${kind}: ${label}`);
      await look(page, `form-${kind}`);
      await page.fill("#password", PASSWORD);
      await submit(page, 200);
      await mustBeDone(page, user, tokens[kind]);
      await look(page, `done-${kind}`);
    });
  }
  console.log("fixed names: for an account and a new password");
}

async function twice() {
  for (const [user, javaScriptEnabled, action] of [
    ["double", true, (page) => page.dblclick("button")],
    ["double-plain", false, (page) => page.dblclick("button")],
    ["twice", false, (page) => page.evaluate(() => { document.forms[0].requestSubmit(); document.forms[0].requestSubmit(); })],
  ]) {
    await guest({ javaScriptEnabled }, async (page) => {
      await form(page, tokens[user]);
      await fill(page, user, PASSWORD);
      await action(page);
      await page.waitForSelector(".jid");
      await mustBeDone(page, user, tokens[user]);
    });
  }
  console.log("twice: whoever taps twice has an account all the same");
}

async function failures() {
  await guest({ width: 360 }, async (page) => {
    await form(page, tokens.down);
    await fill(page, "carol", PASSWORD);
    await submit(page, 503);
    await mustBlame(page, [], "carol");
    must(await page.isVisible("p.wrong[role=alert]"), "nothing says what is wrong");
    await look(page, "error");

    await form(page, tokens.down);
    await page.evaluate((token) => { document.forms[0].elements.token.value = token; }, tokens.contact);
    await fill(page, "carol", PASSWORD);
    await submit(page, 403);
    await look(page, "closed");
  });
  console.log("failures: the server can't be reached, and nothing to do here");
}

async function longNames() {
  const user = "wwwwwwww".repeat(9);
  await guest({ width: 360 }, async (page) => {
    await form(page, tokens.long);
    await look(page, "long-form");
    await fill(page, user, "short1");
    await force(page, 400);
    await look(page, "long-wrong");
    await fill(page, user, PASSWORD);
    await submit(page, 200);
    await mustBeDone(page, user, tokens.long);
    await look(page, "long-done");
  });
  console.log("long names: of the host and of the user");
}

await run([...(long ? [longNames] : [wholeWays, withAnApp, fixedNames, twice, failures]), () => writeFileSync(task.made, JSON.stringify(made))]);
