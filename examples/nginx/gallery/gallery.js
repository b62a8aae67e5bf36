// Shows the folders of a latentfs mount, as nginx lists them with "autoindex_format json".
//
// The folder is the part of the address behind "#", so that back, forward and bookmarks work.
// Names are only ever text, never HTML.
"use strict";

const FILES = "/art";
const LISTS = "/list";
const PICTURE = /\.(png|jpe?g|webp)$/i;
// What could not be had is asked for again, ever less often.
const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 60000;
const SWIPE_PX = 40;

const byId = (id) => document.getElementById(id);
const viewer = byId("viewer");
let pictures = [];
let shown = 0;
let newest = 0;
// How far each folder was scrolled when it was left, by its address.
const scrolled = new Map();
let shownFolder = "";
let touched = null;

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

// Not in step with other pictures that failed at the same time.
const someOf = (pause) => pause * (0.75 + Math.random() / 2);
const longer = (pause) => Math.min(2 * pause, LONGEST_PAUSE_MS);

function load(image, url) {
  let pause = FIRST_PAUSE_MS;
  image.addEventListener("error", () => {
    setTimeout(() => {
      if (image.isConnected) image.src = url;
    }, someOf(pause));
    pause = longer(pause);
  });
  image.src = url;
}

function thumbnail(picture, index) {
  const link = element("a", "", { href: picture.url, title: picture.name });
  const image = new Image();
  // Set before the source: the browser then asks only for what comes near the window.
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = picture.name;
  image.addEventListener("error", () => link.classList.add("failed"));
  image.addEventListener("load", () => link.classList.remove("failed"));
  load(image, picture.url);
  link.append(image, element("span", picture.name));
  link.addEventListener("click", (event) => {
    if (hasModifier(event)) return;
    event.preventDefault();
    show(index);
  });
  return inItem(link);
}

const hasModifier = (event) => event.altKey || event.ctrlKey || event.metaKey || event.shiftKey;

function showTrail(folder) {
  const links = [element("a", "Gallery", { href: address([]) })];
  folder.forEach((name, depth) => {
    links.push(element("a", name, { href: address(folder.slice(0, depth + 1)) }));
  });
  byId("trail").replaceChildren(...links);
}

async function openFolder(pause = FIRST_PAUSE_MS) {
  const folder = folderOfAddress();
  const turn = ++newest;
  if (viewer.open) viewer.close();
  let entries = [];
  let problem = "";
  let mayPass = false;
  try {
    const answer = await fetch(LISTS + encoded(folder) + "/", { cache: "no-store" });
    if (answer.ok) entries = await answer.json();
    else problem = answer.status === 404 ? "There is no such folder." : `nginx said ${answer.status}.`;
    mayPass = answer.status >= 429;
  } catch (error) {
    problem = `The folder could not be read: ${error.message}`;
    mayPass = true;
  }
  if (turn !== newest) return; // the reader has gone on meanwhile
  if (mayPass) {
    setTimeout(() => {
      if (turn === newest) openFolder(longer(pause));
    }, someOf(pause));
  }
  scrolled.set(shownFolder, scrollY);
  shownFolder = address(folder);
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
  scrollTo(0, scrolled.get(shownFolder) ?? 0);
  document.body.dataset.folder = "/" + folder.join("/");
}

function show(index) {
  shown = (index + pictures.length) % pictures.length;
  const { name, size, url } = pictures[shown];
  // Each has an element of its own, which shows no other picture until its own has come.
  const image = new Image();
  image.id = "full";
  image.alt = name;
  image.addEventListener("load", () => {
    const kib = Math.ceil(size / 1024);
    tell(image, "", `${image.naturalWidth} × ${image.naturalHeight}, ${kib} KiB`);
  });
  image.addEventListener("error", () => {
    tell(image, "This picture can't be had at the moment. It is tried again …");
  });
  byId("stage").replaceChildren(image);
  byId("name").textContent = name;
  byId("name").href = url;
  tell(image, "Loading …");
  load(image, url);
  if (!viewer.open) viewer.showModal();
}

// Says what there is instead of the picture, unless another one has taken its place.
function tell(image, state, size = "") {
  if (!image.isConnected) return;
  byId("stage").classList.toggle("waits", state !== "");
  byId("state").textContent = state;
  byId("size").textContent = size;
}

byId("previous").addEventListener("click", () => show(shown - 1));
byId("next").addEventListener("click", () => show(shown + 1));
byId("close").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", ({ target }) => {
  if (target === viewer || target.id === "stage") viewer.close(); // beside the picture
});
viewer.addEventListener("close", () => {
  if (!viewer.open) byId("stage").replaceChildren(); // it may have been opened again meanwhile
});
viewer.addEventListener("keydown", (event) => {
  if (hasModifier(event)) return; // Alt and an arrow: back and forward
  if (event.key === "ArrowRight") show(shown + 1);
  if (event.key === "ArrowLeft") show(shown - 1);
});
viewer.addEventListener(
  "touchstart",
  ({ touches: [{ clientX, clientY }, another] }) => {
    // Two fingers zoom, and one moves what they have zoomed.
    touched = another || visualViewport.scale > 1 ? null : { clientX, clientY };
  },
  { passive: true },
);
viewer.addEventListener("touchend", ({ changedTouches: [end] }) => {
  if (!touched) return;
  const across = end.clientX - touched.clientX;
  const down = end.clientY - touched.clientY;
  touched = null;
  if (Math.abs(across) > Math.max(SWIPE_PX, 2 * Math.abs(down))) show(shown - Math.sign(across));
});
history.scrollRestoration = "manual";
addEventListener("hashchange", () => openFolder());
openFolder();
