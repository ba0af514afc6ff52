// The list of clusters that are shown: a row for each, kept while names and shares change, so that no typing is lost.

const at = (id) => document.getElementById(id);

export class Clusters {
  constructor({ selected, renamed }) {
    this.selected = selected; // called with a cluster, and whether it is one more
    this.renamed = renamed; // called with a cluster and its new name
    this.rows = new Map();
    this.found = [];
    this.here = [];
    this.selection = new Set();
    at("order").onchange = () => this.arrange();
  }

  show(found) {
    this.found = found;
    at("count").textContent = this.shown().length;
    for (const each of found) {
      const row = this.rows.get(each.id) ?? this.row(each);
      const { name } = row;
      if (document.activeElement !== name || name.value === row.was) name.value = each.name;
      row.was = each.name;
      name.setAttribute("aria-label", `Name of cluster ${each.id}`);
      row.box.setAttribute("aria-label", `Select ${each.name}`);
      row.item.hidden = each.shownAs !== each.id;
      row.item.style.setProperty("--colour", `rgb(${each.colour.join()})`);
      const parts = found.filter((other) => other.shownAs === each.id && other !== each);
      row.parts.textContent = parts.length ? `with ${parts.map((part) => part.name).join(", ")}` : "";
      row.parts.title = row.parts.textContent;
      row.all.textContent = each.share === null ? "–" : percent(each.share);
    }
    this.arrange();
  }

  // The shares of the picture.
  measure(here) {
    this.here = here;
    for (const [id, row] of this.rows) {
      row.here.textContent = percent(here[id] ?? 0);
      row.item.classList.toggle("absent", !here[id]);
    }
    if (at("order").value === "here") this.arrange();
  }

  select(selection) {
    this.selection = selection;
    for (const [id, row] of this.rows) {
      row.box.checked = selection.has(id);
      row.item.classList.toggle("chosen", selection.has(id));
    }
  }

  point(id) {
    for (const [each, row] of this.rows) row.item.classList.toggle("hover", each === id);
  }

  reveal(id) {
    this.rows.get(id).item.scrollIntoView({ block: "nearest" });
  }

  edit(id) {
    const { name } = this.rows.get(id);
    name.focus();
    name.select();
  }

  shown() {
    return this.found.filter((each) => each.shownAs === each.id);
  }

  // Rows in the order that is asked for; not while someone types, who would lose the place.
  arrange() {
    if (at("clusters").contains(document.activeElement) && document.activeElement.type === "text") return;
    const by = { share: (each) => -(each.share ?? 0), here: (each) => -(this.here[each.id] ?? 0), id: (each) => each.id };
    const key = by[at("order").value];
    const ids = [...this.found].sort((one, other) => key(one) - key(other) || one.id - other.id).map((each) => each.id);
    if (ids.join() === this.arranged) return;
    this.arranged = ids.join();
    at("clusters").append(...ids.map((id) => this.rows.get(id).item));
  }

  row({ id }) {
    const item = document.createElement("li");
    item.dataset.cluster = id;
    const make = (tag, kind, parent = item) => {
      const made = document.createElement(tag);
      made.className = kind;
      parent.append(made);
      return made;
    };
    const box = make("input", "box");
    box.type = "checkbox";
    make("span", "swatch");
    const text = make("span", "name");
    const name = make("input", "", text);
    name.type = "text";
    name.maxLength = 100;
    name.spellcheck = false;
    name.autocomplete = "off";
    const parts = make("span", "parts", text);
    const row = { item, box, name, parts, here: make("span", "number here"), all: make("span", "number quiet"), was: "" };
    box.onchange = () => this.selected(id, true);
    item.onclick = (event) => {
      if (event.target.tagName !== "INPUT") this.selected(id, event.shiftKey || event.ctrlKey || event.metaKey);
    };
    name.onfocus = () => this.selection.has(id) || this.selected(id, false);
    name.onkeydown = (event) => {
      if (event.key === "Escape") name.value = row.was;
      if (event.key === "Enter" || event.key === "Escape") name.blur();
      event.stopPropagation();
    };
    name.onblur = () => {
      const given = name.value.trim();
      name.value = given || row.was;
      if (given && given !== row.was) this.renamed(id, given);
      else this.arrange();
    };
    this.rows.set(id, row);
    return row;
  }
}

export function percent(share) {
  if (share > 0 && share < 0.005) return "<1 %";
  return `${Math.round(100 * share)} %`;
}
