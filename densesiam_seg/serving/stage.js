// The picture with its mask: drawn at the screen's own resolution, with what is under the pointer.
//
// The mask holds the learned cluster of each pixel; shownAs maps it to the one that it is merged into. So an edit is
// drawn at once, without asking for the mask again.

import { Refused, grid, picture } from "./asking.js";

const at = (id) => document.getElementById(id);
const MOST = 2_500_000; // pixels of the drawing
const PATIENCE = 120; // milliseconds before a mask is asked for, so that leafing through images asks for none
const STEP = 8; // pixels of the mask that an arrow key moves the pointer by

export class Stage {
  constructor({ pointed, picked, ready }) {
    this.pointed = pointed; // called with { id, shownAs, confidence } under the pointer, or null
    this.picked = picked; // called with the cluster that is shown there, and whether it is one more
    this.ready = ready; // called when a mask is there, or gone
    this.shownAs = [];
    this.colours = [];
    this.selection = new Set();
    this.mask = this.confidence = this.point = null;
    this.canvas = at("mask");
    this.canvas.onpointermove = (event) => this.move(event);
    this.canvas.onpointerleave = () => this.leave();
    this.canvas.onclick = (event) => this.pick(event.shiftKey || event.ctrlKey || event.metaKey);
    this.canvas.onblur = () => this.leave();
    this.canvas.onkeydown = (event) => this.key(event);
    for (const name of ["opacity", "borders", "unsure", "only"]) at(name).oninput = () => this.draw();
    new ResizeObserver(() => this.fit()).observe(at("frame"));
    matchMedia("(prefers-color-scheme: dark)").onchange = () => this.draw();
  }

  // Another image: the picture at once, its mask when it is made.
  async show(place) {
    this.asked?.abort();
    this.asked = new AbortController();
    const { signal } = this.asked;
    this.place = place;
    this.mask = this.confidence = null;
    this.leave();
    this.trouble("");
    this.draw();
    this.ready();
    at("stage").ariaBusy = "true";
    try {
      const [mask, confidence] = await Promise.all([
        pause(PATIENCE).then(() => grid(`mask/${place}`, signal)),
        pause(PATIENCE).then(() => this.sure(signal)),
        picture(`picture/${place}`, signal).then((found) => this.paint(found, signal)),
      ]);
      if (signal.aborted) return;
      this.mask = mask;
      this.confidence = confidence;
      this.fit();
      this.ready();
    } catch (error) {
      if (signal.aborted) return;
      this.trouble(error instanceof Refused ? error.message : `the picture cannot be shown (${error.message})`);
    }
    if (!signal.aborted) at("stage").ariaBusy = "false";
  }

  paint(found, signal) {
    if (signal.aborted) return;
    const canvas = at("picture");
    canvas.width = found.width;
    canvas.height = found.height;
    canvas.getContext("2d").drawImage(found, 0, 0);
    at("frame").style.setProperty("--ratio", found.width / found.height);
    at("frame").hidden = false;
  }

  trouble(text) {
    at("trouble").textContent = text;
    at("trouble").hidden = !text;
    if (text) at("frame").hidden = true;
  }

  // Clusters as they are now. How sure the model is of them changes with merges, so that is asked for again.
  async clusters(found) {
    const before = this.shownAs.join();
    this.shownAs = found.map((each) => each.shownAs);
    this.colours = found.map((each) => each.colour);
    this.draw();
    if (!this.mask || before === this.shownAs.join()) return;
    const { signal } = this.asked;
    const fresh = await this.sure(signal).catch(() => null);
    if (signal.aborted || !fresh) return;
    this.confidence = fresh;
    this.draw();
    this.tell();
  }

  // How sure the model is of each pixel; once more where clusters were merged while it was asked for.
  async sure(signal) {
    const asked = this.shownAs.join();
    const found = await grid(`confidence/${this.place}`, signal);
    return asked === this.shownAs.join() ? found : this.sure(signal);
  }

  select(selection) {
    this.selection = selection;
    this.draw();
  }

  // Share of the picture that each cluster has, as it is shown.
  shares() {
    const found = new Array(this.shownAs.length).fill(0);
    if (this.mask) for (const id of this.mask.values) found[id] += 1 / this.mask.values.length;
    const shown = new Array(found.length).fill(0);
    found.forEach((share, id) => (shown[this.shownAs[id]] += share));
    return shown;
  }

  // Which pixel of the mask each pixel of the drawing shows.
  fit() {
    if (!this.mask) return;
    const box = at("frame").getBoundingClientRect();
    if (!box.width || !box.height) return;
    const scale = Math.min(devicePixelRatio, Math.sqrt(MOST / (box.width * box.height)));
    const width = Math.max(Math.round(box.width * scale), 1);
    const height = Math.max(Math.round(box.height * scale), 1);
    this.canvas.width = width;
    this.canvas.height = height;
    this.source = new Int32Array(width * height);
    for (let y = 0, pixel = 0; y < height; y++) {
      const row = Math.floor(((y + 0.5) * this.mask.height) / height) * this.mask.width;
      for (let x = 0; x < width; x++) this.source[pixel++] = row + Math.floor(((x + 0.5) * this.mask.width) / width);
    }
    this.draw();
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    if (!this.mask || !this.source) return context.clearRect(0, 0, width, height);
    const { inside, line } = this.looks();
    const shown = Uint16Array.from(this.source, (place) => this.shownAs[this.mask.values[place]]);
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const step = Math.max(Math.round(devicePixelRatio), 1); // a border's width
    const around = this.selection.size > 0; // those of selected clusters alone: on their own side, all around
    for (let y = 0, pixel = 0; y < height; y++) {
      for (let x = 0; x < width; x++, pixel++) {
        const id = shown[pixel];
        const border =
          (x >= step && shown[pixel - step] !== id) || (y >= step && shown[pixel - step * width] !== id) ||
          (around && ((x < width - step && shown[pixel + step] !== id) || (y < height - step && shown[pixel + step * width] !== id)));
        pixels[pixel] = (border ? line : inside)[id];
      }
    }
    if (at("unsure").checked) this.darken(image.data);
    context.putImageData(image, 0, 0);
  }

  // For each cluster that is shown the colour of its inside and its border, as a pixel: alpha, blue, green, red.
  looks() {
    const opacity = at("opacity").value / 100;
    const hides = at("only").checked ? 1 : 0.78;
    const veil = pixel(backdrop(), hides);
    const chosen = this.selection;
    const inside = new Uint32Array(this.colours.length);
    const line = new Uint32Array(this.colours.length);
    this.colours.forEach((colour, id) => {
      const dimmed = chosen.size > 0 && !chosen.has(id);
      // Among dimmed ones colour is needed less than a sight of the picture.
      inside[id] = dimmed ? veil : pixel(colour, chosen.size ? opacity / 2 : opacity);
      line[id] = at("borders").checked && !dimmed ? pixel(colour, 1) : inside[id];
    });
    return { inside, line };
  }

  // Black over the drawing where the model is unsure.
  darken(data) {
    for (let place = 0, pixel = 0; place < this.source.length; place++, pixel += 4) {
      const black = 1 - this.confidence.values[this.source[place]] / 255;
      const own = (data[pixel + 3] / 255) * (1 - black);
      const alpha = own + black;
      for (let channel = 0; channel < 3; channel++) data[pixel + channel] *= alpha ? own / alpha : 0;
      data[pixel + 3] = 255 * alpha;
    }
  }

  move(event) {
    const box = this.canvas.getBoundingClientRect();
    if (!this.mask || !box.width) return;
    this.point = {
      x: within((event.clientX - box.left) / box.width, this.mask.width),
      y: within((event.clientY - box.top) / box.height, this.mask.height),
    };
    at("cross").hidden = true;
    this.tell();
  }

  leave() {
    this.point = null;
    at("cross").hidden = true;
    this.tell();
  }

  pick(more) {
    const found = this.under();
    if (found) this.picked(found.shownAs, more);
  }

  key(event) {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!this.mask || event.ctrlKey || event.altKey || event.metaKey) return;
    if (by) {
      const { width, height } = this.mask;
      const from = this.point ?? { x: width >> 1, y: height >> 1 };
      const step = Math.ceil((event.shiftKey ? 4 * STEP : STEP) * (Math.max(width, height) / 640));
      this.point = { x: clamp(from.x + by[0] * step, width), y: clamp(from.y + by[1] * step, height) };
      at("cross").hidden = false;
      at("cross").style.left = `${(100 * (this.point.x + 0.5)) / width}%`;
      at("cross").style.top = `${(100 * (this.point.y + 0.5)) / height}%`;
      this.tell();
    } else if (event.key === "Enter" || event.key === " ") {
      this.pick(event.shiftKey);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  // What is under the pointer.
  under() {
    if (!this.point || !this.mask) return null;
    const place = this.point.y * this.mask.width + this.point.x;
    const id = this.mask.values[place];
    return { id, shownAs: this.shownAs[id], confidence: this.confidence.values[place] / 255 };
  }

  tell() {
    const found = this.under();
    this.pointed(found);
    const tip = at("tip");
    tip.hidden = !found;
    if (!found) return;
    const across = this.point.x / this.mask.width;
    const down = this.point.y / this.mask.height;
    tip.style.left = across < 0.6 ? `calc(${100 * across}% + 14px)` : "auto";
    tip.style.right = across < 0.6 ? "auto" : `calc(${100 - 100 * across}% + 14px)`;
    tip.style.top = down < 0.8 ? `calc(${100 * down}% + 14px)` : "auto";
    tip.style.bottom = down < 0.8 ? "auto" : `calc(${100 - 100 * down}% + 14px)`;
  }
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
const within = (share, count) => clamp(Math.floor(share * count), count);
const pixel = ([red, green, blue], alpha) => ((Math.round(255 * alpha) << 24) | (blue << 16) | (green << 8) | red) >>> 0;

// The colour behind the picture, which dimmed clusters fade into.
function backdrop() {
  const found = getComputedStyle(at("stage")).backgroundColor.match(/\d+/g);
  return found.slice(0, 3).map(Number);
}
