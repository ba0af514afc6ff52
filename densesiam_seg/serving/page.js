// The page: images on the left, the picture with its mask, clusters on the right; edits are saved at once.

import { edit, state } from "./asking.js";
import { Clusters, percent } from "./clusters.js";
import { Images } from "./images.js";
import { Stage } from "./stage.js";

const at = (id) => document.getElementById(id);
const EVERY = 2000; // milliseconds after which edits of other programs are looked for
const HINT = at("here").textContent;

let now = null; // the clusters as they are, with their revision
let selection = new Set(); // clusters that are shown, in the order in which they were selected
let editing = 0; // edits under way

const stage = new Stage({ pointed, picked: (id, more) => { select(id, more); clusters.reveal(id); }, ready: measure });
const clusters = new Clusters({
  selected: select,
  renamed: rename,
});
let images = null;

function show(found) {
  now = found;
  at("model").textContent = found.model;
  at("model").title = found.model;
  at("revision").textContent = found.revision;
  at("undo").disabled = found.undo === null;
  at("undo").title = found.undo === null ? "Nothing to undo" : `Undo: ${found.undo} (Ctrl+Z)`;
  selection = new Set([...selection].filter((id) => found.clusters[id].shownAs === id));
  clusters.show(found.clusters);
  stage.clusters(found.clusters);
  measure();
  selected();
}

function measure() {
  clusters.measure(stage.shares());
}

function say(text, bad = false) {
  at("message").textContent = text;
  at("message").title = text;
  at("message").classList.toggle("bad", bad);
  clearTimeout(say.timer);
  if (!bad) say.timer = setTimeout(() => say(""), 6000);
}

// An edit, saved at once; gives whether it was done.
async function change(what, values, done) {
  editing++;
  try {
    show(await edit(what, values));
    say(done);
    return true;
  } catch (error) {
    say(error.message, true);
    // Names and merges as they are, instead of those that were not taken.
    await state().then(show, () => {});
    return false;
  } finally {
    editing--;
  }
}

// Two clusters that are shown may not have one name: whoever wants that may want to merge them.
function rename(cluster, name) {
  const other = now.clusters.find((each) => each.name === name && each.shownAs === each.id && each.id !== cluster);
  if (!other) return change("rename", { cluster, name }, `renamed to ${name}`);
  clusters.show(now.clusters);
  selection = new Set([other.id, cluster]);
  selected();
  say(`${name} is the name of cluster ${other.id} already; both are selected: Merge makes them one`, true);
}

async function merge() {
  if (selection.size < 2) return;
  const [first, ...others] = selection;
  const done = await change("merge", { clusters: [first, ...others] }, `${selection.size} clusters are one; name it, or undo`);
  if (!done) return;
  select(first, false);
  clusters.reveal(first);
  clusters.edit(first);
}

function undo() {
  if (now.undo !== null) change("undo", { revision: now.revision }, `undone: ${now.undo}`);
}

// Select a cluster alone, or add or remove it.
function select(id, more) {
  const before = selection;
  selection = new Set(more ? before : []);
  if (more && before.has(id)) selection.delete(id);
  else selection.add(id);
  // What is selected alone and clicked again is selected no longer, unless its name is edited.
  if (!more && before.size === 1 && before.has(id) && document.activeElement.type !== "text") selection.clear();
  selected();
}

function selected() {
  const names = [...selection].map((id) => now.clusters[id].name);
  at("selected").textContent = names.length < 2 ? names[0] ?? "Select two or more." : `${names.length}: ${names.join(", ")}`;
  at("selected").title = names.join(", ");
  at("merge").disabled = names.length < 2;
  at("merge").textContent = names.length < 2 ? "Merge" : `Merge ${names.length}`;
  at("clear").hidden = !names.length;
  clusters.select(selection);
  stage.select(selection);
}

function pointed(found) {
  clusters.point(found?.shownAs);
  if (!found) {
    at("here").textContent = HINT;
    return;
  }
  const { name, colour } = now.clusters[found.shownAs];
  const [swatch, strong, more] = at("tip").children;
  swatch.style.setProperty("--colour", `rgb(${colour.join()})`);
  strong.textContent = name;
  more.textContent = `#${found.shownAs} · ${percent(found.confidence)} sure`;
  const learned = found.id === found.shownAs ? "" : `; learned as ${now.clusters[found.id].name} (id ${found.id})`;
  at("here").textContent = `${name}: id ${found.shownAs}, ${percent(found.confidence)} sure${learned}`;
}

// Edits of other programs.
async function look() {
  if (document.hidden || editing) return;
  try {
    const found = await state(now.version);
    if (!found || editing) return;
    show(found);
    say(`edited by another program: revision ${found.revision}`);
  } catch (error) {
    say(error.message, true);
  }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=text], input[type=range], select");
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !event.target.matches("input[type=text]")) undo();
  else if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
  else if (event.key === "ArrowLeft") images.show(images.place - 1);
  else if (event.key === "ArrowRight") images.show(images.place + 1);
  else if (event.key === "Escape") { selection.clear(); selected(); }
  else if (event.key.toLowerCase() === "m") merge();
  else return;
  event.preventDefault();
});
at("undo").onclick = undo;
at("merge").onclick = merge;
at("clear").onclick = () => { selection.clear(); selected(); };

async function start() {
  try {
    show(await state());
  } catch (error) {
    say(error.message, true);
    return;
  }
  images = new Images(now.images, (place, name) => {
    history.replaceState(null, "", `#${place + 1}`);
    document.title = `${name} · densesiam-seg`;
    stage.show(place);
  });
  const asked = Number(location.hash.slice(1)) - 1;
  await images.show(asked >= 0 && asked < now.images ? asked : 0);
  setInterval(look, EVERY);
  document.addEventListener("visibilitychange", look);
}

start();
