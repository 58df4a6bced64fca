/** The pad: strokes of one digit, on screen and as a picture of a fixed size. Knows nothing of codes, servers and speech. */

const SIZE = 280, WIDTH = 16, MARGIN = 24;
/** A touch this short is a tap; one this long, that stays where it is, is a hold (milliseconds). */
const TAP = 500, HOLD = 1000, STILL = 40;

export class Pad {
  /** `events`: down() at a touch, says what it is for: "stroke" or "hold"; up() at a stroke's end; edge() when a stroke leaves the pad;
   * twoFingers() at a tap of two; held() when a touch has lasted long enough, hold() when it is lifted then, tap() when before. */
  constructor(canvas, events) {
    this.canvas = canvas;
    this.events = events;
    this.strokes = [];
    this.touch = null;
    canvas.addEventListener("pointerdown", event => this.down(event));
    canvas.addEventListener("pointermove", event => this.move(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) canvas.addEventListener(end, event => this.up(event));
    this.show();
  }

  get empty() { return this.strokes.length === 0; }
  get drawing() { return this.touch !== null; }

  clear() { this.give([]); }

  /** The strokes, which the pad forgets. */
  take() {
    const strokes = this.strokes;
    this.clear();
    return strokes;
  }

  give(strokes) {
    this.lift();
    this.strokes = strokes;
    this.show();
  }

  down(event) {
    if (event.button > 0) return;
    event.preventDefault();
    if (this.touch) { this.touch.second = true; return; }  // a palm, or a tap of two fingers: no second stroke
    const point = this.point(event), use = this.events.down();
    this.touch = {pointer: event.pointerId, use, at: event.timeStamp, points: [point], second: false, outside: false};
    this.canvas.setPointerCapture(event.pointerId);  // a finger that leaves the pad goes on drawing
    if (use === "hold") this.touch.timer = setTimeout(() => this.events.held(), HOLD);
    else this.strokes.push(this.touch.points);
    this.show();
  }

  move(event) {
    const touch = this.touch;
    if (event.pointerId !== touch?.pointer) return;
    const between = event.getCoalescedEvents?.() ?? [];
    for (const one of between.length ? between : [event]) touch.points.push(this.point(one));
    const [x, y] = touch.points.at(-1), outside = Math.min(x, y) < 0 || Math.max(x, y) > SIZE;
    if (outside && !touch.outside && touch.use === "stroke") this.events.edge();
    touch.outside = outside;
    this.show();
  }

  up(event) {
    const touch = this.touch;
    if (event.pointerId !== touch?.pointer) return;
    this.lift();
    const lasted = event.timeStamp - touch.at, still = extent(touch.points) < STILL;
    if (touch.second && still && lasted < TAP) {
      this.strokes = this.strokes.filter(stroke => stroke !== touch.points);
      this.show();
      this.events.twoFingers();
    } else if (touch.use === "stroke") this.events.up();
    else if (event.type === "pointerup" && still) this.events[lasted < HOLD ? "tap" : "hold"]();
  }

  lift() {
    clearTimeout(this.touch?.timer);
    this.touch = null;
  }

  /** Where the pointer is, in the picture's pixels; beyond 0 and SIZE when it has left the pad. */
  point(event) {
    const box = this.canvas.getBoundingClientRect(), left = box.left + this.canvas.clientLeft, top = box.top + this.canvas.clientTop;
    return [(event.clientX - left) * SIZE / this.canvas.clientWidth, (event.clientY - top) * SIZE / this.canvas.clientHeight];
  }

  show() { paint(this.canvas, this.strokes, 1, 0, 0); }

  /** A canvas with the whole digit, white on black: what was drawn beyond the edge is brought in by making all of it smaller. */
  picture() {
    const picture = document.createElement("canvas"), points = this.strokes.flat();
    picture.width = picture.height = SIZE;
    const [left, right] = span(points.map(p => p[0])), [top, bottom] = span(points.map(p => p[1]));
    if (left >= 0 && top >= 0 && right <= SIZE && bottom <= SIZE) paint(picture, this.strokes, 1, 0, 0);
    else {
      const scale = Math.min(1, (SIZE - 2 * MARGIN) / Math.max(right - left, bottom - top));
      paint(picture, this.strokes, scale, (SIZE - scale * (left + right)) / 2, (SIZE - scale * (top + bottom)) / 2);
    }
    return picture;
  }
}

function span(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function extent(points) {
  return Math.max(...[0, 1].map(axis => span(points.map(p => p[axis]))).map(([low, high]) => high - low));
}

function paint(canvas, strokes, scale, dx, dy) {
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.strokeStyle = "#fff";
  pen.lineWidth = WIDTH;
  pen.lineCap = pen.lineJoin = "round";
  for (const stroke of strokes) {
    pen.beginPath();
    stroke.forEach(([x, y], n) => pen[n ? "lineTo" : "moveTo"](x * scale + dx, y * scale + dy));
    if (stroke.length === 1) pen.lineTo(stroke[0][0] * scale + dx, stroke[0][1] * scale + dy);  // a dot
    pen.stroke();
  }
}
