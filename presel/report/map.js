// The map of a pool: drawn point by point into the pixels of a canvas, which takes a software renderer some 50 ms
// for 600,000 images and needs neither a library nor WebGL.
"use strict";
(async () => {
const at = (id) => document.getElementById(`map-${id}`);
const data = JSON.parse(at("data").textContent);
const [canvas, card] = [at("canvas"), at("card")];
const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });

// Columns: one number per image, compressed.
const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };
const inflated = async (text) => {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
};
const columns = {};
for (const [name, [type, text]] of Object.entries(data.columns)) {
  columns[name] = new TYPES[type](await (await inflated(text)).arrayBuffer());
}
const ids = await (await inflated(data.ids)).json();
const n = ids.length;
const [x, y, task] = [columns[data.x], columns[data.y], columns[data.task]];
const NONE = 65535; // in uint16 columns: no value
const runs = data.runs.map((run) => ({ ...run, state: columns[run.state], cluster: columns[run.cluster],
  centrality: columns[run.centrality], rank: columns[run.rank], why: columns[run.why] }));
const REFERENCE = 2; // in `state`: 0 not chosen, 1 chosen, 2 chosen for the reference set

// Characters that could reorder or hide text are spelled out.
const visible = (text) => text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu,
  (one) => `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`);
const element = (tag, { text, ...attributes } = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = visible(String(text));
  made.append(...children);
  return made;
};

// Pictures: places on sheets of thumbnails.
const { side, columns: perRow, sheets } = data.pictures;
const perSheet = perRow * perRow;
const placeOf = new Int32Array(n).fill(-1);
columns[data.pictures.images].forEach((image, place) => { placeOf[image] = place; });
document.head.append(element("style", {},
  sheets.map((uri, number) => `.map .sheet-${number}{background-image:url(${uri})}`).join("\n")));
const sheetImages = sheets.map((uri) => Object.assign(new Image(), { src: uri }));
const pictureOf = (image, size, tag = "span") => {
  const place = placeOf[image] % perSheet;
  const made = element(tag, { class: `picture sheet-${Math.floor(placeOf[image] / perSheet)}` });
  Object.assign(made.style, { width: `${size}px`, height: `${size}px`, backgroundSize: `${perRow * size}px auto`,
    backgroundPosition: `${-(place % perRow) * size}px ${-Math.floor(place / perRow) * size}px` });
  return made;
};

// What is shown: the first run, possibly a second one, and categories of images with a color each.
let [first, second] = [runs[0], null];
let categories = [];
const category = new Uint16Array(n);
const layer = new Uint8Array(n); // drawn in this order: 0 small and pale, 1, 2 large and opaque
const order = new Uint32Array(n);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const packed = (color) => { // as a pixel in memory
  const [r, g, b] = color.match(/\w\w/g).map((hex) => parseInt(hex, 16));
  return (255 << 24 | b << 16 | g << 8 | r) >>> 0;
};
const hex = (r, g, b) => `#${[r, g, b].map((value) => Math.round(value).toString(16).padStart(2, "0")).join("")}`;
const hue = (number, dark) => { // distinct neighbors: the golden angle
  const [h, l] = [(number * 137.508 + 210) % 360, (dark ? [.66, .76] : [.42, .54])[number % 2]];
  const part = (k) => { const t = (k + h / 30) % 12; return l - .62 * Math.min(l, 1 - l) * Math.max(-1, Math.min(t - 3, 9 - t, 1)); };
  return hex(255 * part(0), 255 * part(8), 255 * part(4));
};
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
const ramp = (share, dark) => {
  const position = (dark ? .12 + .88 * share : .9 * share) * (RAMP.length - 1);
  const low = Math.min(Math.floor(position), RAMP.length - 2);
  return hex(...RAMP[low].map((value, k) => value + (RAMP[low + 1][k] - value) * (position - low)));
};
const STEPS = 12;
const MODES = {
  selection: { name: "selection", categories: () => second ? [
    { name: "in neither", color: css("--rest") }, { name: `only in ${first.name}`, color: css("--first") },
    { name: `only in ${second.name}`, color: css("--second") }, { name: "in both", color: css("--both") }] : [
    { name: "not chosen", color: css("--rest") }, { name: "chosen", color: css("--first") },
    ...(first.state.includes(REFERENCE) ? [{ name: "reference set", color: css("--second") }] : [])],
    of: (i) => second ? (first.state[i] > 0) + 2 * (second.state[i] > 0) : first.state[i] },
  task: { name: "task", categories: (dark) => data.tasks.map((name, k) => ({ name, color: hue(k, dark) })), of: (i) => task[i] },
  cluster: { name: "cluster", needs: "cluster", fixed: true,
    categories: (dark) => Array.from({ length: 64 }, (_, k) => ({ name: "", color: hue(k, dark) })),
    legend: () => "a color for each cluster of a task; colors repeat", of: (i) => (first.cluster[i] * 7 + task[i] * 11) % 64 },
  centrality: { name: "centrality", needs: "centrality", fixed: true,
    categories: (dark) => [...Array.from({ length: STEPS }, (_, k) => ({ name: "", color: ramp(k / (STEPS - 1), dark) })),
      { name: "", color: css("--rest") }],
    legend: () => first.range.map((value) => value.toFixed(2)),
    of: (i) => first.centrality[i] === NONE ? STEPS : Math.min(STEPS - 1, Math.floor(first.centrality[i] / NONE * STEPS)) },
  strategies: { name: "how many runs chose it", categories: (dark) => [{ name: "in none", color: css("--rest") },
    ...runs.map((_, k) => ({ name: k ? `in ${k + 1}` : "in one", color: ramp(k / Math.max(1, runs.length - 1), dark) }))],
    of: (i) => runs.reduce((count, run) => count + (run.state[i] > 0), 0) },
};
const chosen = (i) => first.state[i] || (second ? second.state[i] : 0);

const restyle = () => {
  const mode = MODES[at("color").value];
  const hidden = new Set(categories.filter((one) => one.hidden).map((one) => one.name));
  categories = mode.categories(matchMedia("(prefers-color-scheme: dark)").matches)
    .map((one) => ({ ...one, count: 0, pixel: packed(one.color), hidden: !mode.fixed && hidden.has(one.name) }));
  const selecting = at("color").value === "selection";
  const counts = [0, 0, 0];
  for (let i = 0; i < n; i++) {
    category[i] = mode.of(i);
    categories[category[i]].count++;
    layer[i] = chosen(i) ? (selecting && !second && chosen(i) === REFERENCE ? 1 : 2) : (selecting ? 0 : 1);
    counts[layer[i]]++;
  }
  const next = [0, counts[0], counts[0] + counts[1]];
  for (let i = 0; i < n; i++) order[next[layer[i]]++] = i;
  drawLegend(mode);
  dirty();
};
const drawLegend = (mode) => {
  if (mode.fixed) {
    const text = mode.legend();
    const scale = element("span", { class: "scale" });
    scale.style.background = `linear-gradient(to right, ${categories.slice(0, STEPS).map((one) => one.color)})`;
    at("legend").replaceChildren(element("li", {}, Array.isArray(text)
      ? element("span", { class: "range" }, text[0], scale, text[1]) : text));
    return;
  }
  at("legend").replaceChildren(...categories.map((one) => {
    const [dot, name] = [element("b"), element("span", { class: "name", text: one.name, title: visible(one.name) })];
    dot.style.background = one.color;
    const button = element("button", { type: "button", "aria-pressed": String(!one.hidden) }, dot, name,
      element("span", { class: "number", text: one.count.toLocaleString("en") }));
    button.onclick = () => { one.hidden = !one.hidden; button.setAttribute("aria-pressed", String(!one.hidden)); dirty(); };
    return element("li", {}, button);
  }));
};

// The view: the point of the map in the middle, and how much larger than the whole it is.
let view = { x: .5, y: .5, zoom: 1 };
let pixels = null, picture = null, stale = true, waiting = false;
const scale = () => Math.min(canvas.width, canvas.height) * .94 * view.zoom;
const screenX = (i) => (x[i] / 65535 - view.x) * scale() + canvas.width / 2;
const screenY = (i) => (y[i] / 65535 - view.y) * scale() + canvas.height / 2;
const ratio = () => canvas.width / canvas.clientWidth;
const radius = () => Math.min(5.5, Math.max(.9, 0.21 * Math.min(canvas.clientWidth, canvas.clientHeight) / Math.sqrt(n)))
  * Math.min(2, view.zoom ** .35) * ratio();
const dirty = () => { stale = true; show(); };
const show = () => {
  if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; if (picture) draw(); }); }
};
const disc = (r, opacity) => { // its pixels: offset right, offset down, opacity of 256
  const found = [];
  const reach = Math.ceil(r);
  for (let b = -reach; b <= reach; b++) for (let a = -reach; a <= reach; a++) {
    const cover = Math.min(1, Math.max(0, r + .5 - Math.hypot(a, b)));
    if (cover > .02) found.push(a, b, Math.round(256 * opacity * cover));
  }
  return found;
};
const paint = () => {
  const [width, height, s] = [canvas.width, canvas.height, scale()];
  const [left, top] = [width / 2 - view.x * s, height / 2 - view.y * s];
  pixels.fill(packed(css("--paper")));
  const discs = [[.8, .6], [1, .8], [1.35, 1]].map(([factor, opacity]) => disc(radius() * factor, opacity));
  const margin = Math.ceil(radius() * 1.35) + 1;
  for (let k = 0; k < n; k++) {
    const i = order[k];
    const { pixel, hidden } = categories[category[i]];
    const column = Math.round(x[i] / 65535 * s + left), row = Math.round(y[i] / 65535 * s + top);
    if (hidden || column < margin || row < margin || column >= width - margin || row >= height - margin) continue;
    const stamp = discs[layer[i]];
    const [redBlue, green] = [pixel & 0xff00ff, pixel & 0xff00];
    for (let j = 0; j < stamp.length; j += 3) {
      const place = (row + stamp[j + 1]) * width + column + stamp[j], cover = stamp[j + 2], old = pixels[place];
      pixels[place] = 0xff000000 | ((old & 0xff00ff) * (256 - cover) + redBlue * cover) / 256 & 0xff00ff
        | ((old & 0xff00) * (256 - cover) + green * cover) / 256 & 0xff00;
    }
  }
  stale = false;
};
const drawPictures = () => { // one in each square of the map, of chosen images first
  const size = Math.round(52 * ratio());
  const [wide, high] = [Math.floor(canvas.width / size), Math.floor(canvas.height / size)];
  const taken = new Uint8Array(wide * high);
  for (let k = n - 1; k >= 0; k--) {
    const i = order[k];
    if (placeOf[i] < 0 || categories[category[i]].hidden) continue;
    const [column, row] = [Math.floor(screenX(i) / size), Math.floor(screenY(i) / size)];
    if (column < 0 || row < 0 || column >= wide || row >= high || taken[row * wide + column]) continue;
    taken[row * wide + column] = 1;
    const place = placeOf[i] % perSheet;
    context.drawImage(sheetImages[Math.floor(placeOf[i] / perSheet)], (place % perRow) * side, Math.floor(place / perRow) * side,
      side, side, column * size + 2, row * size + 2, size - 4, size - 4);
    context.strokeStyle = categories[category[i]].color;
    context.lineWidth = 2 * ratio();
    context.strokeRect(column * size + 2, row * size + 2, size - 4, size - 4);
  }
};
const ring = (i, color, width) => {
  context.beginPath();
  context.arc(screenX(i), screenY(i), radius() * 1.35 + (width + .8) * ratio(), 0, 7);
  [context.strokeStyle, context.lineWidth] = [color, width * ratio()];
  context.stroke();
};
const draw = () => {
  if (stale) paint();
  context.putImageData(picture, 0, 0);
  if (at("show-pictures").checked) drawPictures();
  else {
    context.globalAlpha = listed.size > 100 ? .3 : 1; // many rings would hide the points
    for (const i of [...listed].slice(0, 2000)) ring(i, css("--ink"), .9);
    context.globalAlpha = 1;
  }
  if (current >= 0) ring(current, css("--ink"), 2.5);
  if (lasso) {
    context.beginPath();
    for (const [a, b] of lasso) context.lineTo(a, b);
    context.setLineDash([6 * ratio(), 4 * ratio()]);
    [context.strokeStyle, context.lineWidth] = [css("--ink"), 1.5 * ratio()];
    context.stroke();
    context.setLineDash([]);
  }
};
new ResizeObserver(() => {
  const ratio = Math.min(2, devicePixelRatio || 1);
  [canvas.width, canvas.height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.floor);
  if (!canvas.width || !canvas.height) return;
  picture = context.createImageData(canvas.width, canvas.height);
  pixels = new Uint32Array(picture.data.buffer);
  dirty();
}).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);

// The image under the pointer, or the one that the keys went to.
let current = -1;
const shown = (i) => !categories[category[i]].hidden;
const nearest = (a, b, reach, allowed = shown) => {
  let [found, best] = [-1, reach * reach];
  for (let k = n - 1; k >= 0; k--) {
    const i = order[k];
    const distance = (screenX(i) - a) ** 2 + (screenY(i) - b) ** 2;
    if (distance < best && allowed(i)) [found, best] = [i, distance];
  }
  return found;
};
const inCluster = (run, i) => { // how many images its cluster has, and gave
  const key = (k) => (run.by_task ? task[k] * NONE : 0) + run.cluster[k];
  run.counts ??= run.cluster.reduce((counts, _, k) => {
    const one = counts.get(key(k)) ?? [0, 0];
    return counts.set(key(k), [one[0] + 1, one[1] + (run.state[k] > 0)]);
  }, new Map());
  return run.counts.get(key(i));
};
const described = (run, i) => {
  const lines = [["selection", run.state[i] ? (run.state[i] === REFERENCE ? "chosen for the reference set" : "chosen") : "not chosen"]];
  if (run.why?.[i] && run.state[i] !== REFERENCE) lines.push(["reason", run.reasons[run.why[i]]]);
  if (run.cluster && run.cluster[i] !== NONE) {
    const [size, gave] = inCluster(run, i);
    lines.push(["cluster", `${run.cluster[i]}, of whose ${size.toLocaleString("en")} images ${gave.toLocaleString("en")} are chosen`]);
  }
  if (run.centrality && run.centrality[i] !== NONE) {
    const [low, high] = run.range;
    lines.push(["centrality", (low + run.centrality[i] / (NONE - 1) * (high - low)).toFixed(3)]);
  }
  if (run.rank && run.rank[i] !== NONE) lines.push(["rank", `${run.rank[i]}${run.cluster ? " in its cluster" : ", in the order of choosing"}`]);
  return lines;
};
const point = (i) => {
  if (i === current) return;
  current = i;
  card.hidden = i < 0;
  show();
  if (i < 0) return;
  const list = element("dl");
  const add = (name, value) => list.append(element("dt", { text: name }), element("dd", { text: value }));
  add("task", data.tasks[task[i]]);
  for (const run of second ? [first, second] : [first]) {
    if (second) add("run", run.name);
    described(run, i).forEach((line) => add(...line));
  }
  card.replaceChildren(placeOf[i] < 0 ? element("span", { class: "none", text: "no picture of it in this page" }) : pictureOf(i, Math.min(160, 1.5 * side)),
    element("div", { class: "id", text: ids[i] }), list);
  const [left, top, plot] = [screenX(i) / ratio(), screenY(i) / ratio(), canvas.getBoundingClientRect()];
  card.style.left = `${left + 270 < plot.width ? left + 16 : Math.max(4, left - 256)}px`;
  card.style.top = `${Math.max(4, Math.min(top - 20, plot.height - card.offsetHeight - 4))}px`;
  if (document.activeElement === canvas) at("status").textContent = visible(`${ids[i]}, ${data.tasks[task[i]]}, ${described(first, i)[0][1]}`);
};

// The list beside the map.
const listed = new Set();
const PICTURES = 120;
// An id as pool.exclude reads it: a line that begins with # is a comment, and one with [#] instead is a pattern.
const excluding = (id) => id.startsWith("#") ? `[#]${id.slice(1).replace(/[*?[]/g, "[$&]")}` : id;
const list = (images, { add = false } = {}) => {
  if (!add) listed.clear();
  for (const i of images) listed.add(i);
  const all = [...listed];
  const taken = all.filter(chosen).length;
  at("count").textContent = all.length ? `${all.length.toLocaleString("en")} listed, ${taken.toLocaleString("en")} of them chosen` : "No image listed";
  at("hint").hidden = all.length > 0;
  for (const name of ["copy", "save", "clear"]) at(name).disabled = !all.length;
  at("ids").hidden = !all.length;
  at("ids").value = all.map((i) => excluding(ids[i])).join("\n");
  const withPicture = all.filter((i) => placeOf[i] >= 0);
  at("listed").replaceChildren(...withPicture.slice(0, PICTURES).map((i) => {
    const button = pictureOf(i, 72, "button");
    Object.assign(button, { type: "button", title: visible(ids[i]), onfocus: () => point(i), onmouseenter: () => point(i), onclick: () => focusOn(i) });
    button.setAttribute("aria-label", visible(ids[i]));
    if (chosen(i)) button.style.borderColor = css("--first");
    return button;
  }), ...(withPicture.length > PICTURES ? [element("span", { text: `and ${(withPicture.length - PICTURES).toLocaleString("en")} more` })] : []));
  show();
};
const focusOn = (i) => { view = { ...view, x: x[i] / 65535, y: y[i] / 65535 }; dirty(); current = -1; point(i); };
const inside = (polygon) => {
  const found = [];
  const [as, bs] = [polygon.map((one) => one[0]), polygon.map((one) => one[1])];
  const [left, right, top, bottom] = [Math.min(...as), Math.max(...as), Math.min(...bs), Math.max(...bs)];
  for (let i = 0; i < n; i++) {
    const [a, b] = [screenX(i), screenY(i)];
    if (a < left || a > right || b < top || b > bottom || !shown(i)) continue;
    let odd = false;
    for (let k = 0, l = polygon.length - 1; k < polygon.length; l = k++) {
      const [[a1, b1], [a2, b2]] = [polygon[k], polygon[l]];
      if (b1 > b !== b2 > b && a < (a2 - a1) * (b - b1) / (b2 - b1) + a1) odd = !odd;
    }
    if (odd) found.push(i);
  }
  return found;
};
const inView = () => list(inside([[0, 0], [canvas.width, 0], [canvas.width, canvas.height], [0, canvas.height]]));

// Pointer and keys.
let lasso = null, drag = null;
const where = (event) => { const box = canvas.getBoundingClientRect(); return [(event.clientX - box.left) * ratio(), (event.clientY - box.top) * ratio()]; };
const zoomAt = (factor, a, b) => {
  const zoom = Math.min(400, Math.max(.5, view.zoom * factor));
  const [dx, dy] = [(a - canvas.width / 2) / scale(), (b - canvas.height / 2) / scale()];
  view = { x: view.x + dx * (1 - view.zoom / zoom), y: view.y + dy * (1 - view.zoom / zoom), zoom };
  dirty();
};
canvas.addEventListener("wheel", (event) => { event.preventDefault(); point(-1); zoomAt(1.0015 ** -event.deltaY, ...where(event)); }, { passive: false });
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  drag = { from: where(event), view, moved: false };
  if (event.shiftKey || at("lasso").ariaPressed === "true") lasso = [where(event)];
});
canvas.addEventListener("pointermove", (event) => {
  const [a, b] = where(event);
  if (!drag) { point(nearest(a, b, 14 * ratio())); return; }
  drag.moved ||= Math.hypot(a - drag.from[0], b - drag.from[1]) > 4 * ratio();
  if (lasso) { lasso.push([a, b]); show(); }
  else if (drag.moved) {
    point(-1);
    view = { ...view, x: drag.view.x - (a - drag.from[0]) / scale(), y: drag.view.y - (b - drag.from[1]) / scale() };
    dirty();
  }
});
canvas.addEventListener("pointerup", (event) => {
  if (lasso && drag?.moved) list(inside(lasso), { add: event.ctrlKey || event.metaKey });
  else if (drag && !drag.moved) { const i = nearest(...where(event), 14 * ratio()); if (i >= 0) list([i], { add: true }); }
  lasso = drag = null;
  show();
});
canvas.addEventListener("pointercancel", () => { lasso = drag = null; show(); });
canvas.addEventListener("pointerleave", () => point(-1));
const step = (right, down) => { // to the nearest image in that direction
  if (current < 0) { point(nearest(canvas.width / 2, canvas.height / 2, 1e9)); return; }
  const [a, b] = [screenX(current), screenY(current)];
  const reach = 40 * ratio();
  const ahead = (i) => { const forward = (screenX(i) - a) * right + (screenY(i) - b) * down;
    return forward > .5 && Math.abs((screenX(i) - a) * down + (screenY(i) - b) * right) <= forward && shown(i); };
  const found = nearest(a + right * reach / 4, b + down * reach / 4, 1e9, ahead);
  if (found < 0) return;
  const [c, d] = [screenX(found), screenY(found)];
  if (c < 0 || d < 0 || c > canvas.width || d > canvas.height) focusOn(found); else point(found);
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = { "+": () => zoomAt(1.4, canvas.width / 2, canvas.height / 2), "-": () => zoomAt(1 / 1.4, canvas.width / 2, canvas.height / 2),
  "0": () => at("reset").click(), v: inView, Escape: () => list([]), Enter: () => { if (current >= 0) list([current], { add: true }); } };
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  // Letters count in capitals too, as with caps lock.
  const key = KEYS[event.key === "=" ? "+" : event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!arrow && !key) return;
  event.preventDefault();
  if (!arrow) key();
  else if (event.shiftKey) { view = { ...view, x: view.x + arrow[0] * .1 / view.zoom, y: view.y + arrow[1] * .1 / view.zoom }; point(-1); dirty(); }
  else step(...arrow);
});

// Controls.
const option = (value, text) => element("option", { value, text });
at("first").append(...runs.map((run, k) => option(k, run.name)));
at("second").append(option("", "no other"), ...runs.map((run, k) => option(k, run.name)));
at("compare").hidden = runs.length < 2;
const choose = () => {
  first = runs[at("first").value];
  second = at("second").value === "" || runs[at("second").value] === first ? null : runs[at("second").value];
  const before = at("color").value || "selection";
  const offered = Object.entries(MODES).filter(([key, mode]) => (!mode.needs || first[mode.needs]) && (key !== "strategies" || runs.length > 2));
  at("color").replaceChildren(...offered.map(([key, mode]) => option(key, mode.name)));
  at("color").value = offered.some(([key]) => key === before) ? before : "selection";
  current = -1;
  card.hidden = true;
  restyle();
  list([], { add: true });
};
at("first").onchange = at("second").onchange = choose;
at("color").onchange = restyle;
at("show-pictures").onchange = async () => { await Promise.all(sheetImages.map((image) => image.decode())); show(); };
at("lasso").onclick = () => { at("lasso").ariaPressed = String(at("lasso").ariaPressed !== "true"); };
at("view").onclick = inView;
at("reset").onclick = () => { view = { x: .5, y: .5, zoom: 1 }; point(-1); dirty(); };
at("find").onchange = () => {
  const wanted = at("find").value.toLowerCase();
  const found = [];
  if (wanted) for (let i = 0; i < n; i++) if (ids[i].toLowerCase().includes(wanted)) found.push(i);
  list(found);
  at("status").textContent = wanted ? `${found.length.toLocaleString("en")} found` : "";
};
at("clear").onclick = () => list([]);
at("copy").onclick = async () => {
  at("ids").select();
  try { await navigator.clipboard.writeText(at("ids").value); } catch { document.execCommand("copy"); }
  at("status").textContent = "Copied.";
};
at("save").onclick = () => {
  const href = URL.createObjectURL(new Blob([`${at("ids").value}\n`], { type: "text/plain" }));
  element("a", { download: "ids.txt", href }).click();
  URL.revokeObjectURL(href);
};
if (runs.length > 1) at("second").value = runs.length - 1;
choose();
})().catch((error) => {
  document.getElementById("map-status").textContent =
    `The map cannot be drawn (${error.message}); it needs a browser of 2023 or later.`;
  throw error;
});
