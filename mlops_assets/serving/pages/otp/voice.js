/** All that is heard. One voice at a time: the page's own, or the screen reader's, or tones; what is new ends what was being said.
 *
 * The page's own voice is a voice of this device (`localService`), else bundled clips: what people enter is never sent to a voice elsewhere.
 */

const SHORT = .12, LONG = .42, GAP = .09, PAUSE = .35;
/** Tones that are not digits: [hertz, seconds] each. */
const SIGNALS = {
  again: [[220, .25], [220, .25]],
  bad: [[160, .5]],
  done: [[440, .15], [554, .15], [659, .3]],
  gone: [[523, .15], [392, .2]],
  go: [[523, .08]],
  edge: [[330, .06]],
};

export class Voice {
  /** `line`: the element that shows what is said; `words`: of both languages. */
  constructor(line, words) {
    this.line = line;
    this.words = words;
    this.mode = "own";
    this.speed = 1;
    this.turn = 0;
    this.playing = [];
    this.clips = {};
    for (const gesture of ["pointerdown", "pointerup", "keydown"]) document.addEventListener(gesture, () => this.wake(), {capture: true});
    globalThis.speechSynthesis?.getVoices();  // browsers read their list of voices at the first question
  }

  set language(language) { this.lang = language; this.stop(); }

  set guidedBy(mode) {
    this.mode = mode;
    this.stop();
    this.line.setAttribute("aria-live", mode === "reader" ? "assertive" : "off");
    this.line.setAttribute("aria-atomic", "true");
  }

  /** `keys`: clips of words.json in order, digits are `d0` to `d9`; `signal`: for whoever hears tones only;
   * `echo`: the screen reader says it by itself. */
  say(keys, {signal = null, bad = false, echo = false} = {}) {
    this.stop();
    this.show(keys, bad, echo);
    if (this.mode === "own") this.speak(keys);
    if (this.mode === "tones") this.sound([...(signal ? SIGNALS[signal] : []), ...keys.filter(isDigit).flatMap(key => [[0, PAUSE], ...digitTones(key)])]);
  }

  /** A tone that goes with a touch: it interrupts nobody, and is silent while somebody speaks. */
  touch(signal) {
    if (this.mode !== "reader" && !this.playing.length && !globalThis.speechSynthesis?.speaking) this.sound(SIGNALS[signal]);
  }

  stop() {
    this.turn += 1;
    globalThis.speechSynthesis?.cancel();
    for (const source of this.playing) source.stop();
    this.playing = [];
  }

  show(keys, bad, echo) {
    const text = this.sentence(keys, key => key[1]);
    this.line.classList.toggle("error", bad);
    this.line.replaceChildren();  // a sentence that is said again is read again
    if (this.mode === "reader" && echo) return;
    requestAnimationFrame(() => { this.line.textContent = text; });
  }

  /** After each digit a comma, which is read as a short pause. */
  sentence(keys, digit) {
    return keys.map(key => isDigit(key) ? `${digit(key)},` : this.words[this.lang].spoken[key]).join(" ");
  }

  speak(keys) {
    const voice = localVoice(this.lang), turn = this.turn;
    if (!voice) { this.playClips(keys, turn); return; }
    const said = new SpeechSynthesisUtterance(this.sentence(keys, key => this.words[this.lang].spoken[key]));
    Object.assign(said, {voice, lang: voice.lang, rate: this.speed});
    said.addEventListener("error", event => {
      if (!["canceled", "interrupted"].includes(event.error) && turn === this.turn) this.playClips(keys, turn);
    });
    speechSynthesis.speak(said);
  }

  async playClips(keys, turn) {
    const lang = this.lang, context = this.wake();
    if (!context) return;
    this.clips[lang] ??= load(context, lang);
    const {buffer, places} = await this.clips[lang].catch(() => { delete this.clips[lang]; return {}; });
    if (!buffer || turn !== this.turn || context.state !== "running") return;
    let at = context.currentTime;
    for (const key of keys) {
      const [start, seconds] = places[key], source = context.createBufferSource();
      source.buffer = buffer;
      source.playbackRate.value = this.speed;
      this.start(source, () => source.start(at, start, seconds));
      at += seconds / this.speed;
    }
  }

  /** `notes`: [hertz, seconds], one after the other; 0 hertz is silence. */
  sound(notes) {
    const context = this.wake();
    if (!context || context.state !== "running") return;
    let at = context.currentTime + .02;
    for (const [hertz, seconds] of notes) {
      if (hertz) this.note(context, hertz, at, seconds);
      at += seconds + GAP;
    }
  }

  note(context, hertz, at, seconds) {
    const source = context.createOscillator(), loudness = context.createGain();
    source.frequency.value = hertz;
    loudness.gain.setValueAtTime(0, at);
    loudness.gain.linearRampToValueAtTime(.3, at + .01);
    loudness.gain.setValueAtTime(.3, at + seconds - .02);
    loudness.gain.linearRampToValueAtTime(0, at + seconds);
    source.connect(loudness).connect(context.destination);
    this.start(source, () => { source.start(at); source.stop(at + seconds); });
  }

  start(source, begin) {
    if (source.numberOfOutputs && source.buffer) source.connect(source.context.destination);
    source.addEventListener("ended", () => { this.playing = this.playing.filter(one => one !== source); });
    this.playing.push(source);
    begin();
  }

  /** Sound is allowed from the first touch on: browsers let no page speak before. */
  wake() {
    if (!this.context && navigator.userActivation?.hasBeenActive !== false && globalThis.AudioContext) this.context = new AudioContext();
    if (this.context?.state === "suspended") this.context.resume();
    return this.context;
  }
}

const isDigit = key => /^d[0-9]$/.test(key);

function digitTones(key) {
  const digit = Number(key[1]);
  if (digit === 0) return [[196, 2 * LONG]];
  return [...Array(Math.floor(digit / 5)).fill([660, LONG]), ...Array(digit % 5).fill([660, SHORT])];
}

function localVoice(lang) {
  const voices = globalThis.speechSynthesis?.getVoices() ?? [];
  const fits = voices.filter(voice => voice.localService === true && voice.lang.toLowerCase().split(/[-_]/)[0] === lang);
  return fits.find(voice => voice.default) ?? fits[0];
}

async function load(context, lang) {
  const [sound, places] = await Promise.all([fetched(`${lang}.mp3`, "arrayBuffer"), fetched(`${lang}.json`, "json")]);
  return {buffer: await context.decodeAudioData(sound), places};
}

async function fetched(name, kind) {
  const answer = await fetch(new URL(`clips/${name}`, import.meta.url));
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer[kind]();
}
