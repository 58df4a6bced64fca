// Speech as a browser has it, without sound: what is said, and by which voice, is in `said`. Clips and tones really start, and every request
// is really made: `heard` and `sent` only write them down.
window.said = [];
window.heard = [];
window.sent = [];
window.voices = [
  {name: "far-ko", lang: "ko-KR", localService: false, default: true},
  {name: "far-en", lang: "en-US", localService: false, default: false},
  {name: "near-ko", lang: "ko-KR", localService: true, default: false},
  {name: "near-en", lang: "en_GB", localService: true, default: false},
];
window.SpeechSynthesisUtterance = class extends EventTarget {
  constructor(text) { super(); this.text = text; }
};
Object.defineProperty(window, "speechSynthesis", {value: Object.assign(new EventTarget(), {
  speaking: false,
  getVoices: () => window.voices,
  cancel() {},
  speak(one) { window.said.push({text: one.text, voice: one.voice.name, rate: one.rate}); },
})});
for (const kind of [AudioBufferSourceNode, OscillatorNode]) {
  const start = kind.prototype.start;
  kind.prototype.start = function (...given) {
    window.heard.push(kind === OscillatorNode ? {tone: Math.round(this.frequency.value)} : {clip: given[1], seconds: given[2]});
    return start.apply(this, given);
  };
}
const fetchAsEver = window.fetch;
window.fetch = (url, options = {}) => {
  window.sent.push({url: String(url), body: typeof options.body === "string" ? JSON.parse(options.body) : null});
  return fetchAsEver(url, options);
};
