/** What the page asks of servers: the model server for each digit, the caller's back-end for the whole code. Never throws. */

/** A network that is silent for so long is away; people have all the time they want. */
const SILENT = 15000;

/** What a drawing is: `{digit, sure, version}`, or `{problem}`: `little` (draw again), `away`, `unready` (the drawing is fine). */
export async function read(picture) {
  const form = new FormData();
  form.append("files", await new Promise(done => picture.toBlob(done, "image/png")), "digit.png");
  const answer = await fetched("/predict/digits", {method: "POST", body: form});
  if (!answer) return {problem: "away"};
  const version = answer.headers.get("X-Model-Version");
  if ([400, 415, 422].includes(answer.status)) return {problem: "little", version};
  const prediction = (await content(answer)).predictions?.[0];
  if (!answer.ok || !/^[0-9]$/.test(prediction?.label)) return {problem: "unready"};
  return {digit: prediction.label, sure: prediction.sure === true, version};
}

/** The code whose drawings the server holds, as far as this page knows; "": perhaps it holds some, its answer was lost. */
let held = null;

/** First what was confirmed to the model server, then the code to the caller: `{outcome, saved, next}`, an outcome of words.json. */
export async function send(page, code, save) {
  const saved = await confirm(page.session, code, save);  // whoever wants in must not be kept out because drawings were not
  if (saved === null) return {outcome: "unsent", saved: false};
  const answer = await fetched(page.verify_url, {...json({session: page.id, code: code.digits}), credentials: "omit"});
  if (!answer || answer.status >= 500) return {outcome: "unsent", saved};
  if (!answer.ok) return {outcome: "ended", saved};
  const said = await content(answer);
  return {outcome: said.verified === true ? "verified" : "wrong", saved, next: sameOrigin(said.next, page.verify_url)};
}

/** Whether all is as wished, drawings held or not. null: they may be held against the wish, and a code that is right would keep them. */
async function confirm(session, code, save) {
  const told = keep => fetched("/otp/confirmation", json(code.confirmation(session, keep)));
  if (save && held === code.digits) return true;  // a session's drawings are taken once
  if (save && !held) {
    const answer = await told(true);
    if (answer?.ok) { held = code.digits; return true; }
    if (!answer) held = "";
    if (answer?.status !== 409) return false;
  }
  // Not wished any more, or of another code: what is held is dropped.
  const answer = await told(false);
  if (held !== null && (!answer || answer.status >= 500)) return save ? false : null;
  held = null;
  return !save;
}

function sameOrigin(next, url) {
  try { return typeof next === "string" && new URL(next).origin === new URL(url).origin ? next : null; } catch { return null; }
}

const json = value => ({method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(value)});

/** null: nothing answered. */
async function fetched(url, options) {
  try { return await fetch(url, {...options, signal: AbortSignal.timeout(SILENT), referrerPolicy: "no-referrer"}); } catch { return null; }
}

async function content(answer) {
  try { return await answer.json() ?? {}; } catch { return {}; }
}
