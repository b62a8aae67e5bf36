// Shows the folders of a latentfs mount, as nginx lists them with "autoindex_format json".
//
// The folder is the part of the address behind "#", so that back, forward and bookmarks work.
// Names are only ever text, never HTML.
"use strict";

const FILES = "/art";
const LISTS = "/list";
const PICTURE = /\.(png|jpe?g|webp)$/i;

const byId = (id) => document.getElementById(id);
const viewer = byId("viewer");
let pictures = [];
let shown = 0;
let newest = 0;

// Folders are lists of names: a name may hold anything but "/".
function folderOfAddress() {
  const names = location.hash.slice(1).split("/").filter(Boolean);
  try {
    return names.map(decodeURIComponent);
  } catch {
    return [];
  }
}

const encoded = (names) => names.map((name) => "/" + encodeURIComponent(name)).join("");
const address = (folder) => "#" + encoded(folder) + "/";

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  return Object.assign(made, attributes);
}

function inItem(child) {
  const item = document.createElement("li");
  item.append(child);
  return item;
}

function say(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}

const counted = (number, one, many) => (number === 1 ? `1 ${one}` : `${number} ${many}`);

function thumbnail(picture, index) {
  const link = element("a", "", { href: picture.url, title: picture.name });
  const image = new Image();
  // Set before the source: the browser then asks only for what comes near the window.
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = picture.name;
  image.addEventListener("error", () => link.classList.add("failed"));
  image.src = picture.url;
  link.append(image, element("span", picture.name));
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(index);
  });
  return inItem(link);
}

function showTrail(folder) {
  const links = [element("a", "Gallery", { href: address([]) })];
  folder.forEach((name, depth) => {
    links.push(element("a", name, { href: address(folder.slice(0, depth + 1)) }));
  });
  byId("trail").replaceChildren(...links);
}

async function openFolder() {
  const folder = folderOfAddress();
  const turn = ++newest;
  if (viewer.open) viewer.close();
  let entries = [];
  let problem = "";
  try {
    const answer = await fetch(LISTS + encoded(folder) + "/", { cache: "no-store" });
    if (answer.ok) entries = await answer.json();
    else problem = answer.status === 404 ? "There is no such folder." : `nginx said ${answer.status}.`;
  } catch (error) {
    problem = `The folder could not be read: ${error.message}`;
  }
  if (turn !== newest) return; // the reader has gone on meanwhile
  const folders = entries.filter((entry) => entry.type === "directory");
  pictures = entries
    .filter((entry) => entry.type === "file" && PICTURE.test(entry.name))
    .map(({ name, size }) => ({ name, size, url: FILES + encoded([...folder, name]) }));
  showTrail(folder);
  byId("folders").replaceChildren(
    ...folders.map(({ name }) => inItem(element("a", name, { href: address([...folder, name]) }))),
  );
  byId("pictures").replaceChildren(...pictures.map(thumbnail));
  byId("count").textContent = counted(pictures.length, "picture", "pictures");
  say(problem || (entries.length ? "" : "This folder is empty."));
  document.body.dataset.folder = "/" + folder.join("/");
}

function show(index) {
  shown = (index + pictures.length) % pictures.length;
  const picture = pictures[shown];
  const full = byId("full");
  full.alt = picture.name;
  full.src = picture.url;
  byId("name").textContent = picture.name;
  byId("name").href = picture.url;
  byId("size").textContent = "";
  if (!viewer.open) viewer.showModal();
}

byId("full").addEventListener("load", ({ target }) => {
  const kib = Math.ceil(pictures[shown].size / 1024);
  byId("size").textContent = `${target.naturalWidth} × ${target.naturalHeight}, ${kib} KiB`;
});
byId("full").addEventListener("error", () => {
  byId("size").textContent = "can't be had at the moment";
});
viewer.addEventListener("click", ({ target }) => {
  if (target.id !== "name") viewer.close();
});
viewer.addEventListener("keydown", ({ key }) => {
  if (key === "ArrowRight") show(shown + 1);
  if (key === "ArrowLeft") show(shown - 1);
});
addEventListener("hashchange", openFolder);
openFolder();
