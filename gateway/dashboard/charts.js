// Charts of the last ten minutes on a canvas: stacked areas, or lines on a logarithmic scale.
// One pointer moves in all of them; events stand in them as vertical lines.

const SPANS = [60, 120, 300, 600];
const LEFT = 40, RIGHT = 4, TOP = 6, BOTTOM = 16;

export function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (size >= 1e4) return `${(value / 1e3).toFixed(0)}k`;
  if (size >= 100 || Number.isInteger(value)) return value.toFixed(0);
  return value.toFixed(size >= 10 ? 1 : size >= 1 ? 1 : 2);
}

export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 60000) return `${(value / 60000).toFixed(1)} min`;
  if (value >= 1000) return `${(value / 1000).toFixed(value >= 1e4 ? 0 : 1)} s`;
  return `${value >= 10 ? value.toFixed(0) : value.toFixed(1)} ms`;
}

function nice(top) {
  const power = 10 ** Math.floor(Math.log10(top || 1));
  for (const factor of [1, 2, 5, 10]) if (factor * power >= top) return factor * power;
  return top;
}

export class Charts {
  constructor(place) {
    this.place = place;
    this.all = [];
    this.samples = [];
    this.marks = [];
    this.pointed = null;
    this.wanted = false;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(place);
  }

  add(title, unit, series, options) {
    const box = document.createElement("figure");
    box.className = "chart";
    box.style.margin = "0";
    const head = document.createElement("figcaption");
    head.className = "title";
    const name = document.createElement("span");
    name.textContent = title;
    const when = document.createElement("span");
    when.className = "muted";
    when.textContent = unit;
    head.append(name, when);
    const legend = document.createElement("div");
    legend.className = "legend";
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", title);
    box.append(head, legend, canvas);
    this.place.append(box);
    const chart = { canvas, legend, when, unit, series, ...options };
    canvas.addEventListener("pointermove", (moved) => this.point(canvas, moved));
    canvas.addEventListener("pointerleave", () => { this.pointed = null; this.draw(); });
    this.all.push(chart);
  }

  point(canvas, moved) {
    const box = canvas.getBoundingClientRect();
    const share = (moved.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - RIGHT);
    this.pointed = Math.min(1, Math.max(0, share));
    this.draw();
  }

  show(samples, marks) {
    this.samples = samples;
    this.marks = marks;
    this.draw();
  }

  draw() {
    if (this.wanted) return;
    this.wanted = true;
    requestAnimationFrame(() => {
      this.wanted = false;
      if (this.samples.length) for (const chart of this.all) this.one(chart);
    });
  }

  one(chart) {
    const { canvas } = chart;
    const box = canvas.getBoundingClientRect();
    const scale = devicePixelRatio || 1;
    const width = Math.round(box.width * scale), height = Math.round(box.height * scale);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, box.width, box.height);
    const samples = this.samples;
    const end = samples[samples.length - 1].at, age = end - samples[0].at;
    const span = SPANS.find((each) => each >= age) || SPANS[SPANS.length - 1];
    const begin = end - span;
    const frame = {
      pen, samples, begin, end, span, w: box.width - LEFT - RIGHT, h: box.height - TOP - BOTTOM,
      x: (at) => LEFT + ((at - begin) / span) * (box.width - LEFT - RIGHT),
    };
    const series = chart.series(samples);
    const place = this.pointed === null ? samples.length - 1 : this.nearest(samples, begin + this.pointed * span);
    if (chart.log) this.lines(frame, chart, series); else this.areas(frame, chart, series);
    this.times(frame);
    this.events(frame);
    if (this.pointed !== null) {
      pen.strokeStyle = color("muted");
      pen.beginPath();
      pen.moveTo(frame.x(samples[place].at), TOP);
      pen.lineTo(frame.x(samples[place].at), TOP + frame.h);
      pen.stroke();
    }
    this.tell(chart, series, samples, place);
  }

  nearest(samples, at) {
    let best = 0;
    for (let i = 0; i < samples.length; i++) if (Math.abs(samples[i].at - at) < Math.abs(samples[best].at - at)) best = i;
    return best;
  }

  grid(frame, y, text) {
    const { pen } = frame;
    pen.strokeStyle = color("line");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(LEFT, Math.round(y) + 0.5);
    pen.lineTo(LEFT + frame.w, Math.round(y) + 0.5);
    pen.stroke();
    pen.fillStyle = color("muted");
    pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    pen.fillText(text, LEFT - 5, y);
  }

  times(frame) {
    const { pen } = frame;
    pen.fillStyle = color("muted");
    pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    pen.textBaseline = "top";
    for (const [back, align] of [[frame.span, "left"], [frame.span / 2, "center"], [0, "right"]]) {
      pen.textAlign = align;
      const text = back ? (back < 60 ? `−${back} s` : `−${back / 60} min`) : "now";
      pen.fillText(text, frame.x(frame.end - back), TOP + frame.h + 3);
    }
  }

  events(frame) {
    const { pen } = frame;
    for (const mark of this.marks) {
      if (mark.at < frame.begin || mark.at > frame.end + 1) continue;
      pen.strokeStyle = color(mark.level === "bad" ? "failed" : "refused");
      pen.globalAlpha = 0.55;
      pen.setLineDash([2, 3]);
      pen.beginPath();
      pen.moveTo(Math.round(frame.x(mark.at)) + 0.5, TOP);
      pen.lineTo(Math.round(frame.x(mark.at)) + 0.5, TOP + frame.h);
      pen.stroke();
      pen.setLineDash([]);
      pen.globalAlpha = 1;
    }
  }

  areas(frame, chart, series) {
    const { pen, samples } = frame;
    const count = samples.length;
    const sums = new Float64Array(count);
    for (const each of series) for (let i = 0; i < count; i++) sums[i] += each.values[i];
    const top = nice(Math.max(chart.least || 1, ...sums));
    const y = (value) => TOP + frame.h - (value / top) * frame.h;
    this.grid(frame, y(0), "0");
    this.grid(frame, y(top / 2), short(top / 2));
    this.grid(frame, y(top), short(top));
    const low = new Float64Array(count);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, frame.w, TOP + frame.h);
    pen.clip();
    for (const each of series) {
      pen.fillStyle = color(each.color);
      pen.beginPath();
      for (let i = 0; i < count; i++) pen.lineTo(frame.x(samples[i].at), y(low[i] + each.values[i]));
      for (let i = count - 1; i >= 0; i--) pen.lineTo(frame.x(samples[i].at), y(low[i]));
      pen.closePath();
      pen.fill();
      for (let i = 0; i < count; i++) low[i] += each.values[i];
    }
    pen.restore();
  }

  lines(frame, chart, series) {
    const { pen, samples } = frame;
    let least = Infinity, most = 0;
    for (const each of series) for (const value of each.values) {
      if (value === null || value <= 0) continue;
      if (value < least) least = value;
      if (value > most) most = value;
    }
    if (!most) { least = 1; most = 100; }
    const low = 10 ** Math.floor(Math.log10(least)), high = Math.max(low * 10, 10 ** Math.ceil(Math.log10(most)));
    const tall = Math.log10(high / low);
    const y = (value) => TOP + frame.h - (Math.log10(Math.max(low, value) / low) / tall) * frame.h;
    for (let at = low; at <= high * 1.01; at *= 10) this.grid(frame, y(at), at >= 1000 ? `${at / 1000} s` : short(at));
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, frame.w, TOP + frame.h + 1);
    pen.clip();
    pen.lineWidth = 1.5;
    pen.lineJoin = "round";
    for (const each of series) {
      pen.strokeStyle = color(each.color);
      pen.beginPath();
      let down = false;
      for (let i = 0; i < samples.length; i++) {
        const value = each.values[i];
        if (value === null) { down = false; continue; }
        if (down) pen.lineTo(frame.x(samples[i].at), y(value)); else pen.moveTo(frame.x(samples[i].at), y(value));
        down = true;
      }
      pen.stroke();
    }
    pen.restore();
  }

  tell(chart, series, samples, place) {
    const at = samples[place].at;
    chart.when.textContent = this.pointed === null ? chart.unit : new Date(at * 1000).toLocaleTimeString([], { hour12: false });
    const rows = [];
    for (const each of series) {
      const item = document.createElement("span");
      const swatch = document.createElement("i");
      swatch.style.background = color(each.color);
      const value = document.createElement("b");
      value.textContent = chart.log ? ms(each.values[place]) : short(each.values[place]);
      item.append(swatch, each.name, value);
      rows.push(item);
    }
    chart.legend.replaceChildren(...rows);
  }
}
