/** The page: pictures come in by file, drop and drawing; both models classify them; then they are compared. */

import "./style.css";
import {Card, percent} from "./card";
import {makeDrawable} from "./drawing";
import {message} from "./errors";
import {decode, show, type Picture} from "./image";
import {startRuntime} from "./model";
import {measure, ROUNDS} from "./timing";

function find<T extends HTMLElement>(selector: string): T {
  return document.querySelector<T>(selector)!;
}

const dense = new Card(find("#dense"), "Dense");
const lowRank = new Card(find("#low_rank"), "Low-rank");
const cards = [dense, lowRank];
const count = find<HTMLInputElement>("#count");
const error = find("#picture .error");
let picture: Picture | null = null;

/** Steps run one after the other: a model that is being timed is not replaced, and timing is not disturbed. */
let queue: Promise<void> = Promise.resolve();
function enqueue(step: () => Promise<void>): void {
  queue = queue.then(step).catch((reason) => {
    error.textContent = message(reason);
  });
}

async function takePicture(next: Picture): Promise<void> {
  error.textContent = "";
  picture = next;
  await classify();
}

async function classify(): Promise<void> {
  const current = picture;
  if (!current) return;
  const shown = Math.max(1, count.valueAsNumber || 1);
  for (const card of cards) {
    if (!card.model) continue;
    await card.reporting(async () => card.showResults(await card.model!.classify(current), current.name, shown));
  }
  preview(current);
  compare();
}

/** What the model gets to see, from the first model there is. */
function preview(current: Picture): void {
  const model = cards.find((card) => card.model)?.model;
  find("#preview").hidden = !model;
  if (!model) return;
  show(model.pixels(current), find<HTMLCanvasElement>("#preview canvas"));
  find("#preview figcaption").textContent = `${current.name}, as the model gets it`;
}

async function takeModel(card: Card, content: Uint8Array, name: string): Promise<void> {
  const before = card.model;
  await card.load(content, name);
  if (card.model === before) return;
  await classify();
  await time();
}

async function time(): Promise<void> {
  const loaded = cards.filter((card) => card.model);
  const status = find("#status");
  status.textContent = `Measuring ${ROUNDS} times …`;
  await new Promise((resolve) => setTimeout(resolve)); // the text appears first
  const latencies = await measure(loaded.map((card) => card.model!));
  loaded.forEach((card, index) => card.showLatency(latencies[index]));
  status.textContent = `Median of ${ROUNDS} measurements, one thread of this device`;
  compare();
}

/** Low-rank against dense, as far as both are known. */
function compare(): void {
  const both = dense.model !== null && lowRank.model !== null;
  find("#comparison").hidden = !both;
  find<HTMLButtonElement>("#again").disabled = !cards.some((card) => card.model);
  if (!both) return;
  find("#ratio_size").textContent = percent(lowRank.model!.bytes / dense.model!.bytes);
  const timed = dense.latency !== null && lowRank.latency !== null;
  find("#ratio_speed").textContent = timed ? `${(dense.latency! / lowRank.latency!).toFixed(2)}×` : "–";
  const classified = dense.topClass >= 0 && lowRank.topClass >= 0;
  find("#agreement").textContent = classified ? (dense.topClass === lowRank.topClass ? "same" : "different") : "–";
}

/** `models/dense.tflite` and `models/low_rank.tflite` beside the page, where somebody has put them. */
async function loadDefault(card: Card): Promise<void> {
  const name = `${card.element.id}.tflite`;
  const response = await fetch(new URL(`models/${name}`, document.baseURI)).catch(() => null);
  // Some servers send a page in the place of a missing file.
  if (!response?.ok || response.headers.get("Content-Type")?.startsWith("text/html")) return;
  await takeModel(card, new Uint8Array(await response.arrayBuffer()), name);
}

/** Takes the chosen file; choosing it again counts as well. */
function onFile(input: HTMLInputElement, take: (file: File) => Promise<void>): void {
  input.addEventListener("click", () => (input.value = ""));
  input.addEventListener("change", () => {
    const file = input.files?.[0];
    if (file) enqueue(() => take(file));
  });
}

function onDrop(target: HTMLElement, take: (file: File) => Promise<void>): void {
  target.addEventListener("dragover", (event) => {
    event.preventDefault();
    target.classList.add("over");
  });
  target.addEventListener("dragleave", () => target.classList.remove("over"));
  target.addEventListener("drop", (event) => {
    event.preventDefault();
    target.classList.remove("over");
    const file = event.dataTransfer?.files[0];
    if (file) enqueue(() => take(file));
  });
}

const takeImageFile = async (file: File) => takePicture(await decode(file, file.name));
onFile(find("#image"), takeImageFile);
onDrop(find("#picture"), takeImageFile);
for (const card of cards) {
  const takeModelFile = async (file: File) => takeModel(card, new Uint8Array(await file.arrayBuffer()), file.name);
  onFile(card.part(".model"), takeModelFile);
  onDrop(card.element, takeModelFile);
  onFile(card.part(".names input"), (file) => card.takeClassNames(file));
}
// A file that misses its target must not replace the page.
for (const event of ["dragover", "drop"]) document.addEventListener(event, (dropped) => dropped.preventDefault());

const clear = makeDrawable(find("#drawing"), (drawn) => enqueue(() => takePicture(drawn)));
find("#clear").addEventListener("click", clear);
find("#again").addEventListener("click", () => enqueue(time));
count.addEventListener("change", () => enqueue(classify));

enqueue(async () => {
  find("#status").textContent = "Loading LiteRT.js …";
  await startRuntime();
  find("#status").textContent = "";
  for (const card of cards) await loadDefault(card);
  compare();
  document.body.dataset.state = "ready";
});
