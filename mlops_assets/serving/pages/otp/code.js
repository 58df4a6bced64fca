/** What has been entered: digits in order, each with how it came to be. Knows nothing of the page. */

export class Code {
  constructor(length) {
    this.length = length;
    this.clear();
  }

  clear() {
    this.entries = [];
    /** Per place what the model said first, which version, and how often it was asked again; stays when a digit is undone and drawn anew. */
    this.places = Array.from({length: this.length}, () => ({first: null, again: 0, version: null}));
  }

  get digits() { return this.entries.map(entry => entry.digit).join(""); }
  get full() { return this.entries.length === this.length; }
  /** 1 for the first digit. */
  get place() { return Math.min(this.entries.length + 1, this.length); }

  /** The model of `version` took what was drawn at this place for `digit` (null: it could not say); `again`: it was not sure. */
  said(digit, version, again) {
    const place = this.places[this.place - 1];
    place.first ??= digit;
    place.version = version;
    if (again) place.again += 1;
  }

  add(digit, picture = null) { this.entries.push({digit, picture}); }
  remove() { return this.entries.pop(); }

  /** Make it these digits, at most `length`: what was drawn stays as far as they begin alike, the rest is typed. */
  type(digits) {
    const same = [...digits].findIndex((digit, n) => this.entries[n]?.digit !== digit);
    this.entries.length = same < 0 ? digits.length : Math.min(same, this.entries.length);
    for (const digit of digits.slice(this.entries.length)) this.add(digit);
  }

  /** The body of POST /otp/confirmation. Unless `save`, neither drawings nor digits, nor what the model took them for: only whether
   * it was wrong. */
  confirmation(session, save) {
    const entries = this.entries.map(({digit, picture}, n) => {
      const {first, again, version} = this.places[n], drawn = save && picture ? picture.toDataURL("image/png").split(",")[1] : null;
      return {drawn, first: save ? first : null, corrected: first === null ? null : first !== digit, asked_again: again, version};
    });
    return save ? {session, digits: this.digits, entries, save} : {session, entries, save};
  }
}

/** The digits in a text, also full-width ones; spaces, dashes and words around a pasted code are left out. */
export const digitsIn = text => text.normalize("NFKC").replace(/[^0-9]/g, "");
