// A moving line plot as SVG: the newest second stands at the right edge.

const NS = "http://www.w3.org/2000/svg";
const WIDTH = 400, HEIGHT = 120, LEFT = 34, BOTTOM = 16, TOP = 8;

export function svg(name, attributes = {}) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// The next round number of 1, 2 or 5 times a power of ten, so that the scale rests while the line moves.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

export class Plot {
  constructor(place, label, lines, seconds) {
    this.seconds = seconds;
    this.moments = []; // [milliseconds, value of each line]
    const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
    this.marks = [1, 0.5, 0].map((share) => {
      const y = TOP + (1 - share) * (HEIGHT - TOP - BOTTOM);
      root.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y, y2: y }));
      const text = svg("text", { x: LEFT - 4, y: y + 4, "text-anchor": "end" });
      root.append(text);
      return { share, text };
    });
    const start = svg("text", { x: LEFT, y: HEIGHT - 3 });
    start.textContent = `${seconds / 60} min ago`;
    const end = svg("text", { x: WIDTH, y: HEIGHT - 3, "text-anchor": "end" });
    end.textContent = "now";
    this.area = svg("path", { class: "area" });
    this.paths = lines.map((name) => svg("path", { class: name }));
    root.append(start, end, this.area, ...this.paths);
    place.append(root);
  }

  add(...moments) {
    this.moments.push(...moments);
  }

  draw(now) {
    const oldest = now - this.seconds * 1000;
    this.moments = this.moments.filter((moment) => moment[0] >= oldest);
    const top = ceiling(Math.max(1, ...this.moments.flatMap((moment) => moment.slice(1))));
    for (const { share, text } of this.marks) text.textContent = String(+(top * share).toPrecision(3));
    const x = (ts) => LEFT + ((ts - oldest) / (this.seconds * 1000)) * (WIDTH - LEFT);
    const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
    this.paths.forEach((path, line) => {
      const points = this.moments.map((moment) => `${x(moment[0]).toFixed(1)},${y(moment[line + 1]).toFixed(1)}`);
      path.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
      if (line === 0 && points.length > 1) {
        const floor = y(0);
        const [first, last] = [this.moments[0], this.moments[this.moments.length - 1]];
        this.area.setAttribute("d", `M${x(first[0])},${floor}L${points.join("L")}L${x(last[0])},${floor}Z`);
      }
    });
  }
}
