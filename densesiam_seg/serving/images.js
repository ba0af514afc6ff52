// The list of images: names with thumbnails, a page at a time.

import { names } from "./asking.js";

const at = (id) => document.getElementById(id);

export class Images {
  constructor(count, chosen) {
    this.count = count;
    this.chosen = chosen; // called with an image's place and name
    this.place = -1;
    this.first = 0;
    this.atOnce = 1;
    this.names = [];
    at("earlier").onclick = () => this.page(this.first - this.atOnce);
    at("later").onclick = () => this.page(this.first + this.atOnce);
    at("previous").onclick = () => this.show(this.place - 1);
    at("next").onclick = () => this.show(this.place + 1);
  }

  // Show an image, and the page of the list that it is on.
  async show(place) {
    if (place < 0 || place >= this.count || place === this.place) return;
    this.place = place;
    if (!(place - this.first in this.names)) await this.page(place - (place % this.atOnce));
    if (this.place !== place) return;
    this.mark();
    at("previous").disabled = place === 0;
    at("next").disabled = place === this.count - 1;
    const name = this.names[place - this.first];
    at("name").textContent = name;
    at("name").title = name;
    this.chosen(place, name);
  }

  async page(from) {
    const found = await names(Math.max(from, 0));
    if (from % found.atOnce) return this.page(from - (from % found.atOnce));
    this.first = found.from;
    this.atOnce = found.atOnce;
    this.names = found.names;
    at("images").replaceChildren(...found.names.map((name, index) => this.row(name, found.from + index)));
    const last = found.from + found.names.length;
    at("range").textContent = `${(found.from + 1).toLocaleString("en")}–${last.toLocaleString("en")} of ${this.count.toLocaleString("en")}`;
    at("pager").hidden = this.count <= found.atOnce;
    at("earlier").disabled = found.from === 0;
    at("later").disabled = last >= this.count;
    this.mark();
  }

  row(name, place) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.place = place;
    button.title = name;
    button.onclick = () => this.show(place);
    const image = document.createElement("img");
    image.loading = "lazy";
    image.alt = "";
    image.width = 56;
    image.height = 42;
    image.src = `thumbnail/${place}`;
    image.onerror = () => image.removeAttribute("src"); // an empty tile; the reason is shown in the picture's place
    const text = document.createElement("span");
    text.textContent = name;
    button.append(image, text);
    const item = document.createElement("li");
    item.append(button);
    return item;
  }

  mark() {
    for (const button of at("images").querySelectorAll("button")) {
      const here = Number(button.dataset.place) === this.place;
      if (here) {
        button.setAttribute("aria-current", "true");
        button.scrollIntoView({ block: "nearest" });
      } else {
        button.removeAttribute("aria-current");
      }
    }
  }
}
