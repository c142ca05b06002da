// What a pointer does on the page beyond tapping buttons. `element` holds the picture; `trigger` tells Python.

// A stroke on the picture, from down to up, is told as points in pixels of the picture.
const SVG = "http://www.w3.org/2000/svg";
const LEAST = 4; // pixels of the screen between two points of a stroke
const image = () => element.querySelector("#picture img");
const kind = () => document.querySelector("#kind input:checked").value;
let stroke = null; // {points: [[x, y], ...] on the screen, shape: what shows them}

function inPicture([x, y]) {
  const { left, top, width, height } = image().getBoundingClientRect();
  const { naturalWidth, naturalHeight } = image();
  const least = getComputedStyle(image()).objectFit === "scale-down" ? 1 : 0; // then it is never enlarged
  const scale = Math.max(naturalWidth / width, naturalHeight / height, least); // there may be bars beside it
  return [
    Math.round((x - left - width / 2) * scale + naturalWidth / 2),
    Math.round((y - top - height / 2) * scale + naturalHeight / 2),
  ];
}

function clamped([x, y]) {
  const { naturalWidth, naturalHeight } = image();
  return [Math.min(Math.max(x, 0), naturalWidth - 1), Math.min(Math.max(y, 0), naturalHeight - 1)];
}

function onPicture(event, at) {
  if (!image() || !event.target.contains(image())) return false;
  const [x, y] = inPicture(at);
  return x >= 0 && y >= 0 && x <= image().naturalWidth && y <= image().naturalHeight;
}

function show({ points, shape }) {
  const [[x, y], [u, v]] = [points[0], points[points.length - 1]];
  const corners = kind() === "box" ? [[x, y], [u, y], [u, v], [x, v], [x, y]] : points;
  shape.firstChild.setAttribute("points", corners.join(" "));
}

function end() {
  const points = stroke.points;
  stroke.shape.remove();
  stroke = null;
  return points;
}

element.addEventListener("dragstart", (event) => event.preventDefault());
element.addEventListener(
  "touchstart",
  (event) => {
    const { clientX, clientY } = event.touches[0];
    if (kind() !== "click" && onPicture(event, [clientX, clientY])) event.preventDefault(); // no scrolling
  },
  { passive: false },
);
element.addEventListener("pointerdown", (event) => {
  const at = [event.clientX, event.clientY];
  if (stroke || !event.isPrimary || event.button !== 0 || !onPicture(event, at)) return;
  const shape = document.createElementNS(SVG, "svg");
  shape.style = "position: fixed; inset: 0; width: 100vw; height: 100vh; pointer-events: none; z-index: 99";
  const line = shape.appendChild(document.createElementNS(SVG, "polyline"));
  line.style = "fill: none; stroke: #f60; stroke-width: 3";
  element.append(shape);
  stroke = { points: [at], shape };
  image().setPointerCapture(event.pointerId);
});
element.addEventListener("pointermove", (event) => {
  if (!stroke || !event.isPrimary || kind() === "click") return;
  const at = [event.clientX, event.clientY];
  const last = stroke.points[stroke.points.length - 1];
  if (Math.hypot(at[0] - last[0], at[1] - last[1]) < LEAST) return;
  stroke.points.push(at);
  show(stroke);
});
element.addEventListener("pointerup", (event) => {
  if (stroke && event.isPrimary) trigger("input", { points: end().map(inPicture).map(clamped) });
});
element.addEventListener("pointercancel", (event) => {
  if (stroke && event.isPrimary) end();
});

// A phrase under a resting mouse is selected as if it was clicked.
const REST = 200; // milliseconds
let rest;
document.addEventListener("pointerover", (event) => {
  clearTimeout(rest);
  const phrase = event.pointerType === "mouse" && event.target.closest("#answer .token.highlighted");
  if (phrase) rest = setTimeout(() => phrase.click(), REST);
});
