"use strict";
// The page is whole without this script: it turns strips of pictures into sliders, and lets pictures be enlarged.

function make(tag, attributes, text) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}

function addSlider(strip, index) {
  const frames = [...strip.children];
  if (frames.length < 2) return;
  const slider = make("input", { type: "range", min: 0, max: frames.length - 1, id: `slider-${index}` });
  const label = make("label", { for: slider.id }, strip.dataset.label);
  const show = () => {
    frames.forEach((frame, place) => { frame.hidden = place !== Number(slider.value); });
    slider.setAttribute("aria-valuetext", frames[slider.value].innerText);
  };
  slider.value = frames.length - 1;
  slider.addEventListener("input", show);
  strip.before(label, slider);
  strip.classList.add("slides");
  show();
}

function addZoom(pictures) {
  const dialog = make("dialog", { class: "zoom", "aria-label": "Enlarged picture" });
  const bar = make("div", { class: "bar" });
  const title = make("span", { role: "status" });
  const box = make("div", { class: "box", tabindex: 0 });
  const image = make("img", { alt: "" });
  let place = 0, scale = 1;
  const side = (name) => Number(pictures[place].getAttribute(name)); // in pixels; known before the copy is decoded
  const fit = () => Math.min(4, (window.innerWidth - 32) / side("width"), (window.innerHeight - 100) / side("height"));
  const resize = (factor) => {
    scale = Math.min(12, Math.max(0.2, scale * factor));
    image.style.width = `${Math.round(side("width") * scale)}px`;
    image.classList.toggle("sharp", scale >= 1);
  };
  const open = (index) => {
    place = (index + pictures.length) % pictures.length;
    image.src = pictures[place].src;
    image.alt = pictures[place].alt;
    title.textContent = pictures[place].alt;
    scale = fit();
    resize(1);
    if (!dialog.open) dialog.showModal();
    box.focus();
  };
  const actions = {
    "Smaller": ["−", () => resize(1 / 1.5)],
    "Larger": ["+", () => resize(1.5)],
    "Previous picture": ["‹", () => open(place - 1)],
    "Next picture": ["›", () => open(place + 1)],
    "Close": ["Close", () => dialog.close()],
  };
  for (const [name, [text, act]] of Object.entries(actions)) {
    const button = make("button", { type: "button", "aria-label": name }, text);
    button.addEventListener("click", act);
    bar.append(button);
  }
  dialog.addEventListener("keydown", (event) => {
    const act = { "-": actions["Smaller"], "+": actions["Larger"], "=": actions["Larger"] }[event.key];
    if (act) act[1]();
  });
  bar.prepend(title);
  box.append(image);
  dialog.append(bar, box);
  document.body.append(dialog);
  pictures.forEach((picture, index) => {
    const button = make("button", { type: "button", class: "enlarge", "aria-label": `Enlarge: ${picture.alt}` });
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", () => open(index));
  });
}

document.querySelectorAll(".frames").forEach(addSlider);
const pictures = [...document.querySelectorAll(".pictures img")];
if (pictures.length && "HTMLDialogElement" in window) addZoom(pictures);
const reach = () => document.querySelectorAll(".scroll, pre").forEach((region) => {
  if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
  else region.removeAttribute("tabindex");
});
reach();
window.addEventListener("resize", reach);
