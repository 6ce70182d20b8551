"use strict";
// Panes that show pictures side by side with one shared view: pan by dragging, zoom at the pointer with the wheel.
// A picture is a pyramid of tiles; only the tiles in sight, at the level that the zoom asks for, are loaded.
const Viewer = (() => {
  let root, panes = [], view = { x: 0.5, y: 0.5, zoom: 1 }, asked = false, before = null;
  const element = (tag, text, cls) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (cls) made.className = cls;
    return made;
  };

  // view.x, view.y: the point in the middle, as a share of the picture; view.zoom: 1 fits the whole picture.
  const scaleOf = (pane) => {
    const { width, height } = pane.picture, ratio = devicePixelRatio;
    return view.zoom * Math.min(pane.box.clientWidth * ratio / width, pane.box.clientHeight * ratio / height);
  };

  function tile(pane, level, x, y) {
    const { picture } = pane, key = `${level}-${x}-${y}`;
    if (!pane.tiles.has(key)) {
      const image = new Image();
      image.onload = draw;
      image.src = picture.folder === null ? picture.file : `${picture.folder}/${key}.png`;
      pane.tiles.set(key, image);
    }
    const image = pane.tiles.get(key);
    return image.complete && image.naturalWidth ? image : null;
  }

  function paint(pane) {
    const { canvas, picture, box } = pane, ratio = devicePixelRatio;
    canvas.width = Math.max(1, Math.round(box.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(box.clientHeight * ratio));
    const pen = canvas.getContext("2d"), scale = scaleOf(pane);
    pen.imageSmoothingEnabled = scale < 2;
    const left = canvas.width / 2 - view.x * picture.width * scale;
    const top = canvas.height / 2 - view.y * picture.height * scale;
    const wanted = Math.min(picture.levels - 1, Math.max(0, Math.floor(Math.log2(1 / scale))));
    for (let level = picture.levels - 1; level >= wanted; level--) { // coarse first: something is always there
      if (level !== wanted && level !== picture.levels - 1) continue;
      const side = picture.tile * 2 ** level * scale;
      const across = Math.ceil(picture.width / (picture.tile * 2 ** level));
      const down = Math.ceil(picture.height / (picture.tile * 2 ** level));
      for (let y = Math.max(0, Math.floor(-top / side)); y < down && top + y * side < canvas.height; y++)
        for (let x = Math.max(0, Math.floor(-left / side)); x < across && left + x * side < canvas.width; x++) {
          const image = tile(pane, level, x, y);
          if (image) {
            const step = 2 ** level * scale;
            pen.drawImage(image, left + x * side, top + y * side, image.naturalWidth * step, image.naturalHeight * step);
          }
        }
    }
  }

  function draw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      panes.forEach(paint);
      if (panes.length) root.querySelector(".percent").textContent = `${Math.round(100 * scaleOf(panes[0]))} %`;
    });
  }

  function move(pane, dx, dy) { // by screen pixels
    const scale = scaleOf(pane) / devicePixelRatio;
    view.x = Math.min(1, Math.max(0, view.x - dx / (pane.picture.width * scale)));
    view.y = Math.min(1, Math.max(0, view.y - dy / (pane.picture.height * scale)));
    draw();
  }

  function zoom(factor, pane = panes[0], px = 0, py = 0) { // px, py: from the middle, in screen pixels
    const old = view.zoom, least = Math.min(0.5, old / scaleOf(pane)); // half the fit, or 1:1 where that is less
    view.zoom = Math.min(256, Math.max(least, old * factor));
    const scale = scaleOf(pane) / devicePixelRatio, back = scale * old / view.zoom;
    view.x += px / pane.picture.width * (1 / back - 1 / scale);
    view.y += py / pane.picture.height * (1 / back - 1 / scale);
    move(pane, 0, 0);
  }

  function listen(pane) {
    const pointers = new Map();
    const fromMiddle = (event) => {
      const box = pane.box.getBoundingClientRect();
      return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    };
    pane.box.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 300), pane, ...fromMiddle(event));
    }, { passive: false });
    pane.box.addEventListener("pointerdown", (event) => {
      pane.box.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
    });
    pane.box.addEventListener("pointermove", (event) => {
      const last = pointers.get(event.pointerId);
      if (!last) return;
      if (pointers.size === 2) { // pinch
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
        const far = (a) => Math.hypot(a.clientX - other.clientX, a.clientY - other.clientY);
        zoom(far(event) / Math.max(1, far(last)), pane, ...fromMiddle(event));
      } else move(pane, event.clientX - last.clientX, event.clientY - last.clientY);
      pointers.set(event.pointerId, event);
    });
    for (const end of ["pointerup", "pointercancel"])
      pane.box.addEventListener(end, (event) => pointers.delete(event.pointerId));
  }

  function build() {
    root = element("div");
    root.id = "viewer";
    root.setAttribute("role", "dialog");
    const bar = element("header"), whole = element("button", "whole"), pixels = element("button", "1:1");
    const shut = element("button", "close");
    whole.onclick = () => { view = { x: 0.5, y: 0.5, zoom: 1 }; draw(); };
    pixels.onclick = () => zoom(1 / scaleOf(panes[0]));
    shut.onclick = close;
    bar.append(element("div", "", "what"), element("div", "", "percent"), whole, pixels, shut);
    const grid = element("div");
    grid.id = "panes";
    root.append(bar, grid);
    document.body.append(root);
    addEventListener("resize", draw);
    addEventListener("keydown", (event) => {
      if (!root.classList.contains("open")) return;
      const far = 60, act = {
        Escape: close, "+": () => zoom(1.25), "-": () => zoom(0.8), 0: () => whole.onclick(), 1: () => pixels.onclick(),
        ArrowLeft: () => move(panes[0], far, 0), ArrowRight: () => move(panes[0], -far, 0),
        ArrowUp: () => move(panes[0], 0, far), ArrowDown: () => move(panes[0], 0, -far),
      }[event.key];
      if (act) { event.preventDefault(); act(); }
    });
  }

  function open(title, shown) { // shown: [{label, picture}]
    if (!root) build();
    before = document.activeElement;
    root.querySelector(".what").textContent = title;
    const grid = root.querySelector("#panes"), columns = Math.ceil(Math.sqrt(shown.length));
    grid.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
    grid.replaceChildren();
    view = { x: 0.5, y: 0.5, zoom: 1 };
    panes = shown.map(({ label, picture }) => {
      const box = element("div", undefined, "pane"), canvas = element("canvas");
      box.append(canvas, element("span", label));
      grid.append(box);
      const pane = { box, canvas, picture, tiles: new Map() };
      listen(pane);
      return pane;
    });
    root.classList.add("open");
    root.querySelector("button").focus();
    draw();
  }

  function close() {
    root.classList.remove("open");
    panes = [];
    if (before) before.focus();
  }

  return { open, close, element };
})();
