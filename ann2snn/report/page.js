// What a report does when it is used: pictures that move along the sampler's path, charts that say the value below the
// pointer, and a raster of which every neuron can be followed. Without this the page shows the same, standing still.
"use strict";

const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
const FRAME_MS = 160, LAST_MS = 1500;
const NEAR = 40; // page pixels within which a mark is meant

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** An element with a class, put at the end of `parent`. */
function added(parent, name, kind) {
  const element = document.createElement(name);
  element.className = kind;
  return parent.appendChild(element);
}

/** An SVG element with attributes, put at the end of `parent`. */
function drawn(parent, name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return parent.appendChild(element);
}

// ---- The path from noise to image: all rows show one state, which the slider, the keys or the clock choose.

function makePath(path) {
  const labels = path.dataset.labels.split("|"), last = labels.length - 1;
  const controls = path.querySelector(".controls");
  const [button, slider, output] = ["button", "input", "output"].map((name) => controls.querySelector(name));
  const pictures = [...path.querySelectorAll(".film img")];
  let timer = 0;

  function show(frame) {
    slider.value = frame;
    for (const picture of pictures) picture.style.transform = `translateX(${(-100 * frame) / labels.length}%)`;
    output.textContent = `state ${frame + 1} of ${labels.length}: ${labels[frame]}`;
    slider.setAttribute("aria-valuetext", labels[frame]);
  }
  function stop() {
    clearTimeout(timer);
    timer = 0;
    button.textContent = "Play";
  }
  function advance() {
    const frame = (Number(slider.value) + 1) % labels.length;
    show(frame);
    timer = setTimeout(advance, frame === last ? LAST_MS : FRAME_MS);
  }
  function play() {
    button.textContent = "Pause";
    advance();
  }

  button.addEventListener("click", () => (timer ? stop() : play()));
  slider.addEventListener("input", () => {
    stop();
    show(Number(slider.value));
  });
  const obey = () => {
    stop();
    button.hidden = calm.matches; // who asks for less motion moves the slider
  };
  calm.addEventListener("change", obey);
  obey();
  path.classList.add("live");
  path.querySelector(".films").removeAttribute("tabindex"); // nothing left to scroll
  controls.hidden = false;
  show(last);
}

// ---- Charts: the nearest mark says what it stands for, to the pointer and to the arrow keys.

const tip = added(document.body, "div", "tip");
tip.setAttribute("role", "status");
tip.hidden = true;

function middle(mark) {
  const box = mark.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
}

function makeChart(chart) {
  const marks = [];
  for (const title of [...chart.querySelectorAll(".mark > title")]) {
    const mark = title.parentNode;
    mark.dataset.says = title.textContent;
    title.remove(); // or the browser shows it a second time
    marks.push(mark);
  }
  if (!marks.length) return;
  chart.tabIndex = 0;
  let current = null;

  function say(mark) {
    if (current) current.classList.remove("now");
    current = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("now");
    tip.textContent = mark.dataset.says;
    const [x, y] = middle(mark), wide = document.documentElement.clientWidth;
    tip.style.left = "0px";
    tip.style.left = `${clamp(x + 12, 4, Math.max(4, wide - tip.offsetWidth - 4)) + window.scrollX}px`;
    tip.style.top = `${y - tip.offsetHeight - 10 + window.scrollY}px`;
  }
  function nearest(x, y) {
    let found = null, least = NEAR;
    for (const mark of marks) {
      const box = mark.getBoundingClientRect();
      const away = Math.hypot(x - clamp(x, box.left, box.right), y - clamp(y, box.top, box.bottom));
      if (away < least) [found, least] = [mark, away];
    }
    return found;
  }
  chart.addEventListener("pointermove", (event) => say(nearest(event.clientX, event.clientY)));
  chart.addEventListener("pointerdown", (event) => say(nearest(event.clientX, event.clientY)));
  chart.addEventListener("pointerleave", () => say(null));
  chart.addEventListener("blur", () => say(null));
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") say(null);
    if (!step) return;
    event.preventDefault();
    const place = current ? marks.indexOf(current) + step : step > 0 ? 0 : marks.length - 1;
    say(marks[(place + marks.length) % marks.length]);
    current.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}

// ---- The raster: a neuron and a time step are chosen, and every panel says what that neuron does there.

function makeRaster(chart) {
  const panels = [...chart.querySelectorAll("[data-panel]")].map((group) => ({
    name: group.dataset.panel,
    left: Number(group.dataset.left),
    unit: Number(group.dataset.unit),
    steps: Number(group.dataset.steps),
    top: Number(group.dataset.top),
    bottom: Number(group.dataset.bottom),
    neurons: [...group.querySelectorAll("[data-neuron]")].map(readNeuron),
    cursor: drawn(group, "path", { class: "cursor", d: "" }),
  }));
  if (!panels.length) return;
  const longest = Math.max(...panels.map((panel) => panel.steps));
  const probe = document.createElement("div"), controls = added(probe, "div", "controls");
  probe.className = "probe"; // stays in sight while the raster is scrolled
  const slider = added(controls, "input", "");
  Object.assign(slider, { type: "range", min: 1, max: longest, step: 1, value: 1 });
  slider.setAttribute("aria-label", "time step");
  const readout = added(probe, "div", "readout");
  readout.setAttribute("aria-live", "polite");
  chart.parentNode.before(probe);
  let row = 0, step = 1;

  function show() {
    slider.value = step;
    readout.replaceChildren();
    added(readout, "b", "").textContent = panels[0].neurons[row].name;
    for (const panel of panels) {
      const neuron = panel.neurons[row], own = Math.min(step, panel.steps);
      const x = panel.left + (own - 0.5) * panel.unit, edge = panel.left + panel.steps * panel.unit;
      panel.cursor.setAttribute("d", `M${x} ${panel.top}V${panel.bottom}M${panel.left} ${neuron.y}H${edge}`);
      added(readout, "small", "").textContent = `${panel.name}, step ${own} of ${panel.steps}: ${told(neuron, own)}`;
    }
  }
  function point(event) {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    const panel = panels.find((one) => place.x < one.left + one.steps * one.unit) || panels[panels.length - 1];
    step = clamp(Math.ceil((place.x - panel.left) / panel.unit), 1, panel.steps);
    const away = panel.neurons.map((neuron) => Math.abs(neuron.y - place.y));
    row = away.indexOf(Math.min(...away));
    show();
  }
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  slider.addEventListener("input", () => {
    step = Number(slider.value);
    show();
  });
  chart.addEventListener("keydown", (event) => {
    const [right, down] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key] || [0, 0];
    if (!right && !down) return;
    event.preventDefault();
    step = clamp(step + right, 1, longest);
    row = clamp(row + down, 0, panels[0].neurons.length - 1);
    show();
  });
  const busiest = panels[0].neurons.map((neuron) => neuron.events.filter((event) => event).length);
  row = busiest.indexOf(Math.max(...busiest));
  show();
}

function readNeuron(group) {
  const data = group.dataset, numbers = (text) => text.split(",").map(Number);
  const title = group.querySelector("title");
  if (title) title.remove(); // the readout says more
  const potentials = data.potentials ? numbers(data.potentials) : null;
  return { name: data.neuron, y: Number(data.y), events: numbers(data.events), potentials };
}

/** What a neuron does in a step and holds after it. */
function told(neuron, step) {
  const event = neuron.events[step - 1], level = neuron.events.slice(0, step).reduce((sum, one) => sum + one, 0);
  const many = (count) => (count === 1 ? "a spike" : `${count} spikes`);
  const sent = event > 0 ? `sends ${many(event)}` : event < 0 ? `takes back ${many(-event)}` : "is silent";
  const words = `${sent}, level ${level}`;
  if (!neuron.potentials) return words;
  return `${words}, membrane potential ${(neuron.potentials[step - 1] / 100).toFixed(2)} thresholds`;
}

document.querySelectorAll(".path").forEach(makePath);
document.querySelectorAll("svg.plot").forEach((chart) => (chart.dataset.kind === "raster" ? makeRaster : makeChart)(chart));
document.documentElement.dataset.ready = "yes"; // all of the above has run
