/** The page /otp: digits are drawn or typed, read back, confirmed and sent to the caller's back-end. Nothing here has a time limit. */

import { Code, digitsIn } from "./code.js";
import { Pad } from "./pad.js";
import { read as readDigit, send as sendCode } from "./server.js";
import { Voice } from "./voice.js";

const $ = id => document.getElementById(id);
const page = JSON.parse($("data").textContent);
const REMEMBERED = "otp-guidance", PAUSES = [0.8, 1.5, 2.5, 4, 0], SPEEDS = [[0.75, "slow"], [1, "normal"], [1.4, "fast"], [1.9, "faster"]];
/** After so many doubtful readings of one digit typing is offered. */
const TRIES = 2;

const code = new Code(page.length);
const voice = new Voice($("said"), page.words);
const pad = new Pad($("pad"), {
  down: strokeBegins, up: strokeEnds, edge: () => voice.touch("edge"), twoFingers: undo, held: () => voice.touch("go"), hold: send, tap: readBack,
});
const state = {lang: page.lang, phase: "drawing", tries: 0, asked: null, waiting: false, kept: null, timer: 0};

const words = () => page.words[state.lang];
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const shown = (key, values = {}) => fill(words().shown[key], values);
const placeKeys = () => words().place.map(key => fill(key, {n: code.place, length: code.length}));
const digitKeys = digits => [...digits].map(digit => `d${digit}`);
const needed = `need_${code.length}`;

// --- drawing -----------------------------------------------------------------------------------------------------------------------

/** What the pad is for now: a stroke, or (everything is entered) being held down to send. */
function strokeBegins() {
  clearTimeout(state.timer);
  return state.phase === "drawing" ? "stroke" : "hold";
}

function strokeEnds() {
  const pause = Number($("pause").value);
  if (pause) state.timer = setTimeout(read, pause * 1000);
}

/** Ask the server what was drawn. The pad is free at once: the next digit may be begun while it reads. */
async function read() {
  clearTimeout(state.timer);
  if (state.phase !== "drawing" || pad.drawing) return;
  if (code.full) { drop(); voice.say(["typed"], {signal: "go"}); return; }  // there is no place for another digit
  if (state.asked) { state.waiting = true; return; }
  if (pad.empty && !state.kept) { voice.say(["empty"], {signal: "bad"}); return; }
  const drawing = state.kept ?? {picture: pad.picture(), strokes: pad.take()}, asked = {};
  Object.assign(state, {asked, kept: null, waiting: !pad.empty});
  const answer = await readDigit(drawing.picture);
  if (state.asked !== asked) return;  // undone meanwhile
  const next = state.waiting && !answer.problem;
  Object.assign(state, {asked: null, waiting: false});
  if (answer.problem) notRead(answer, drawing);
  else heard(answer, drawing.picture);
  if (next && !pad.empty) read();
}

/** Forget what was drawn and is not read yet, on the pad and under way. */
function drop() {
  clearTimeout(state.timer);
  Object.assign(state, {asked: null, waiting: false, kept: null});
  pad.clear();
}

function heard({digit, sure, version}, picture) {
  code.said(digit, version, !sure);
  if (!sure) { doubt("again"); return; }
  code.add(digit, picture);
  state.tries = 0;
  if (code.full) { confirm(); return; }
  render();
  voice.say([`d${digit}`, ...placeKeys()]);
}

/** Never a guess: the digit is asked again, and after a second time typing is offered. */
function doubt(reason) {
  state.tries += 1;
  pad.clear();
  render();
  voice.say([state.tries < TRIES ? reason : "choose", ...placeKeys()], {signal: "again", bad: true});
}

function notRead({problem, version}, drawing) {
  if (problem === "little") { code.said(null, version, true); doubt("little"); return; }
  if (pad.empty) pad.give(drawing.strokes);
  else state.kept = drawing;  // the next digit was begun meanwhile and stays on the pad: this one is read before it
  voice.say([problem], {signal: "bad", bad: true});
}

function undo() {
  if (state.phase !== "drawing" && state.phase !== "confirm") return;
  const pending = state.asked !== null || state.kept !== null || !pad.empty;
  drop();
  if (pending) { voice.say(["cleared", ...placeKeys()], {signal: "gone"}); return; }
  const removed = code.remove();
  if (!removed) { voice.say(["nothing"], {signal: "bad"}); return; }
  draw($("undo"));
  voice.say(["removed", `d${removed.digit}`, ...placeKeys()], {signal: "gone"});
}

function startOver() {
  if (state.phase === "sending") return;
  drop();
  code.clear();
  draw($("over"));
  voice.say(["over", ...placeKeys()], {signal: "gone"});
}

/** Back to drawing. `focus` takes the focus if the button that had it disappears. */
function draw(focus) {
  const leaves = state.phase === "confirm" && $("confirm").contains(document.activeElement);
  Object.assign(state, {phase: "drawing", tries: 0});
  render();
  if (leaves) focus.focus();
}

// --- typing ------------------------------------------------------------------------------------------------------------------------

function typed(event) {
  const digits = digitsIn($("code").value), before = code.digits;
  if (state.phase === "sending" || event.isComposing) return;
  if ($("code").value !== digits) $("code").value = digits;  // a pasted message has words around its code
  if (digits.length > code.length) { wrongCount("many"); return; }
  code.type(digits);
  if (code.full) drop();  // it would be a digit too many
  Object.assign(state, {phase: "drawing", tries: 0});
  render(true);
  if (digits === before) return;
  if (code.full) voice.say(["typed"], {signal: "go"});
  else if (digits.startsWith(before)) voice.say(digitKeys(digits.slice(before.length)), {echo: true});
  else voice.say(["removed", ...digitKeys(before.slice(digits.length))], {signal: "gone", echo: true});
}

function wrongCount(key) {
  $("code").setAttribute("aria-invalid", "true");
  $("code-error").hidden = false;
  $("code-error").textContent = `${words().spoken[key]} ${words().spoken[needed]}`;
  voice.say([key, needed], {signal: "bad", bad: true});
}

function check(event) {
  event.preventDefault();
  if (state.phase === "sending") return;
  const digits = digitsIn($("code").value), count = digits.length;
  if (count !== code.length) { wrongCount(count < code.length ? "few" : "many"); $("code").focus(); return; }
  code.type(digits);  // no event told of what was typed before this script ran, or is by some keyboards
  confirm();
}

// --- confirming and sending ------------------------------------------------------------------------------------------------------------

function confirm() {
  state.phase = "confirm";
  drop();
  render();
  // For whoever cannot see the pad it stays where the finger knows it; typed codes come into view.
  $("confirm-title").focus({preventScroll: code.entries.some(entry => entry.picture)});
  voice.say(["code_is", ...digitKeys(code.digits), "press_send"], {echo: true});  // a screen reader reads what has the focus
}

function readBack() { voice.say(["code_is", ...digitKeys(code.digits), "press_send"]); }

/** Again what was said last, or where one is. */
function repeat() {
  if (state.phase === "drawing") voice.say([...(code.full ? ["typed"] : placeKeys())], {signal: "go"});
  else readBack();
}

async function send() {
  if (state.phase !== "confirm") return;
  if (!page.session) { finish(["practised"]); return; }
  state.phase = "sending";
  render();
  voice.say(["sending"], {signal: "go"});
  const {outcome, saved, next} = await sendCode(page, code, $("save").checked);
  if (outcome === "verified") { finish(["verified", ...(saved ? [] : ["unsaved"])], next); return; }
  state.phase = "confirm";
  render();
  voice.say([outcome], {signal: "bad", bad: true});
}

function finish(keys, next = null) {
  state.phase = "done";
  code.clear();
  render();
  $("done-title").textContent = keys.map(key => words().spoken[key]).join(" ");
  const link = page.session ? next : location.href;
  $("next").hidden = !link;
  if (link) $("next").href = link;
  $("next").textContent = shown(page.session ? "next" : "again_practice");
  $("done-title").focus();
  voice.say(keys, {signal: "done", echo: true});
}

// --- the page --------------------------------------------------------------------------------------------------------------------------

/** `typing`: the text field is left as the person has it. */
function render(typing = false) {
  const place = {n: code.place, length: code.length}, {phase} = state, entered = phase === "confirm" || phase === "sending";
  $("place").textContent = shown(code.full ? "full" : "place", place);
  $("pad").setAttribute("aria-label", shown(code.full ? "full" : "pad", place));
  $("code-hint").textContent = shown("code_hint", place);
  $("code").removeAttribute("aria-invalid");
  $("code-error").hidden = true;
  $("code").readOnly = phase === "sending";
  if (!typing) $("code").value = code.digits;
  $("work").hidden = phase === "done";
  $("done").hidden = phase !== "done";
  $("confirm").hidden = !entered;
  $("pad-buttons").hidden = entered;
  $("type-it").hidden = state.tries < TRIES || phase !== "drawing";
  $("read-back").textContent = entered ? [...code.digits].join(shown("code_separator")) : "";
  for (const button of $("confirm").querySelectorAll("button")) button.setAttribute("aria-disabled", String(phase === "sending"));
  savingSaid();
  cells();
}

/** The black cells: a picture of what is entered, for people who see it. */
function cells() {
  $("cells").replaceChildren(...Array.from({length: code.length}, (_, n) => {
    const cell = document.createElement("span"), entry = code.entries[n];
    cell.className = n === code.entries.length ? "now" : "";
    if (entry?.picture) cell.append(entry.picture);
    else cell.textContent = entry?.digit ?? "";
    return cell;
  }));
}

function savingSaid() {
  $("saving-said").textContent = shown(!page.session ? "practice_send" : $("save").checked ? "will_save" : "wont_save");
}

function speakLanguage(lang) {
  state.lang = voice.language = document.documentElement.lang = lang;
  document.title = shown("title");
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = shown(element.dataset.t);
  options($("pause"), PAUSES.map(seconds => [seconds, seconds ? shown("seconds", {n: seconds}) : shown("off")]));
  options($("speed"), SPEEDS.map(([speed, name]) => [speed, shown(name)]));
  for (const button of document.querySelectorAll(".language")) button.setAttribute("aria-pressed", String(button.dataset.lang === lang));
  if (page.problem) $("problem-text").textContent = shown(page.problem);
  $("to-practice").href = `/otp?lang=${lang}`;
  render(true);
}

function options(select, values) {
  const chosen = select.value;
  select.replaceChildren(...values.map(([value, text]) => new Option(text, value)));
  select.value = chosen;
}

function guide(mode) {
  voice.guidedBy = mode;
  document.querySelector(`[name=voice][value=${mode}]`).checked = true;
  $("tones-hint").hidden = mode !== "tones";
}

/** How one is guided is remembered only where asked for; whether drawings may be saved never is. */
function remember() {
  const guidance = {voice: voice.mode, pause: $("pause").value, speed: $("speed").value};
  if ($("remember").checked) localStorage.setItem(REMEMBERED, JSON.stringify(guidance));
  else localStorage.removeItem(REMEMBERED);
}

function remembered() {
  try { return JSON.parse(localStorage.getItem(REMEMBERED)) ?? {}; } catch { return {}; }
}

function settle() {
  const guidance = remembered();
  $("remember").checked = "voice" in guidance;
  speakLanguage(page.lang);
  $("pause").value = PAUSES.map(String).includes(guidance.pause) ? guidance.pause : "1.5";
  $("speed").value = SPEEDS.some(([speed]) => String(speed) === guidance.speed) ? guidance.speed : "1";
  voice.speed = Number($("speed").value);
  guide(page.voice ?? (["own", "reader", "tones"].includes(guidance.voice) ? guidance.voice : "own"));
  $("save").checked = false;
  $("practice").hidden = Boolean(page.session);
  $("saving").hidden = !page.session;
  $("problem").hidden = !page.problem;
  if (page.problem) { $("work").hidden = true; $("problem-title").focus(); }
}

$("typing").addEventListener("submit", check);
$("code").addEventListener("input", typed);
for (const [id, press] of Object.entries({
  "read": read, "undo": undo, "undo-last": undo, "over": startOver, "over-again": startOver, "repeat": repeat, "send": send, "listen": readBack,
})) $(id).addEventListener("click", press);
$("help").addEventListener("click", () => voice.say(["help"]));
$("type-it").addEventListener("click", () => $("code").focus());
$("save").addEventListener("change", savingSaid);
for (const radio of document.querySelectorAll("[name=voice]")) {
  radio.addEventListener("change", () => { guide(radio.value); voice.say([radio.value], {signal: "done"}); remember(); });
}
$("pause").addEventListener("change", remember);
$("speed").addEventListener("change", () => { voice.speed = Number($("speed").value); voice.say(["own"]); remember(); });
$("remember").addEventListener("change", remember);
for (const button of document.querySelectorAll(".language")) button.addEventListener("click", () => speakLanguage(button.dataset.lang));
settle();
